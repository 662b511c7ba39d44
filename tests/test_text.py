"""Tokens to text and back: whole characters, stop strings, chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.errors import CheckpointError, RequestError
from parallel.text.chat import ChatTemplate
from parallel.text.stream import StopFilter, TextStream
from parallel.text.tokenizer import Tokenizer
from parallel.text.vocabulary import DecoderKind
from tests.small_tokenizers import BOS, EOS, byte_level, metaspace, pieces, save

KINDS = {"bytes": byte_level, "pieces": pieces, "metaspace": metaspace}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: Tokenizer.load(save(make(), root / name)) for name, make in KINDS.items()}


def groups_of(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """`ids` cut in pieces of these sizes, again from the first size when they are used up."""
    out, at, turn = [], 0, 0
    while at < len(ids):
        size = sizes[turn % len(sizes)]
        out.append(ids[at : at + size])
        at, turn = at + size, turn + 1
    return out


ID_LISTS = st.lists(st.integers(0, 10_000), max_size=40)
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(raw=ID_LISTS, sizes=SIZES)
def test_pieces_together_are_the_decoded_text(
    loaded: dict[str, Tokenizer], kind: str, raw: list[int], sizes: list[int]
) -> None:
    tokenizer = loaded[kind]
    ids = [i % tokenizer.vocabulary_size for i in raw]
    stream = TextStream(tokenizer)
    out = [stream.push(group) for group in groups_of(ids, sizes)]
    assert "".join(out) + stream.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_no_piece_holds_half_a_character(
    loaded: dict[str, Tokenizer], kind: str, text: str
) -> None:
    tokenizer = loaded[kind]
    text = text.replace("\ufffd", "")
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = TextStream(tokenizer)
    out = [stream.push([i]) for i in ids]
    assert all("\ufffd" not in piece for piece in out)
    assert "".join(out) + stream.flush() == tokenizer.decode(ids)


def test_a_character_comes_with_its_last_byte(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["bytes"]
    ids = tokenizer.encode("😀", add_special_tokens=False)
    stream = TextStream(tokenizer)
    assert [stream.push([i]) for i in ids] == ["", "", "", "😀"]
    cut = TextStream(tokenizer)
    assert cut.push(ids[:3]) == "" and cut.flush() == "\ufffd"


def test_text_that_goes_on_keeps_its_first_space(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["pieces"]
    ids = tokenizer.encode("the", add_special_tokens=False)
    assert tokenizer.decode(ids) == "the"
    assert TextStream(tokenizer).push(ids) == "the"
    assert TextStream(tokenizer, continues=True).push(ids) == " the"


def cut_by_characters(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What a stream must show: the first stop string that is complete, the longest of several."""
    for end in range(1, len(text) + 1):
        met = [s for s in stops if text[:end].endswith(s)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    text=st.text("ab\n", max_size=24),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4),
    sizes=SIZES,
)
def test_stop_strings_cut_the_same_however_text_comes(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    stop_filter, out, at, turn = StopFilter(stops), "", 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        out += stop_filter.push(text[at : at + size])
        at, turn = at + size, turn + 1
        assert text.startswith(out)
    out += stop_filter.flush()
    assert (out, stop_filter.stopped) == cut_by_characters(text, stops)


def test_only_a_possible_beginning_is_held_back() -> None:
    stop_filter = StopFilter(["\n\nQ:", "END"])
    assert stop_filter.push("word\n") == "word"
    assert stop_filter.push("E") == "\n"
    assert stop_filter.push("N!") == "EN!"
    assert stop_filter.push("x\n\nQ: more") == "x"
    assert stop_filter.stopped == "\n\nQ:"
    assert stop_filter.push("never") == "" and stop_filter.flush() == ""


@settings(max_examples=60, deadline=None)
@given(raw=ID_LISTS, stops=st.lists(st.text("aeht ", min_size=1, max_size=3), max_size=3))
def test_streamed_tokens_stop_where_the_text_does(
    loaded: dict[str, Tokenizer], raw: list[int], stops: list[str]
) -> None:
    tokenizer = loaded["bytes"]
    ids = [i % tokenizer.vocabulary_size for i in raw]
    stream = TextStream(tokenizer, stops)
    out = "".join([stream.push([i]) for i in ids]) + stream.flush()
    assert (out, stream.stopped) == cut_by_characters(tokenizer.decode(ids), stops)


def test_tokens_by_themselves(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["bytes"]
    assert tokenizer.kind is DecoderKind.BYTES
    euro = tokenizer.encode("€", add_special_tokens=False)
    assert [tokenizer.token_bytes(i) for i in euro] == [b"\xe2", b"\x82", b"\xac"]
    assert tokenizer.token_text(euro[0]) == "\ufffd"
    added = tokenizer.encode("<tool call>Ünicode→")
    assert [tokenizer.token_text(i) for i in added] == ["<tool call>", "Ünicode→"]
    assert tokenizer.token_bytes(10**6) == b""
    byte_fallback = loaded["pieces"]
    assert byte_fallback.kind is DecoderKind.PIECES
    text = [byte_fallback.token_bytes(i) for i in byte_fallback.encode("the €")]
    assert b"".join(text) == " the €".encode()
    assert b"\xe2" in text


def test_facts_come_from_the_files_beside(tmp_path: Path) -> None:
    directory = save(byte_level(), tmp_path / "m")
    assert Tokenizer.load(directory).facts.eos_token_ids == (1,)
    assert Tokenizer.load(directory).facts.tokens == {"bos_token": BOS, "eos_token": EOS}
    (directory / "config.json").write_text(json.dumps({"eos_token_id": 7, "bos_token_id": 3}))
    assert Tokenizer.load(directory).facts.eos_token_ids == (7,)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    facts = Tokenizer.load(directory).facts
    assert (facts.eos_token_ids, facts.bos_token_ids) == ((5, 6), (3,))


def test_a_directory_without_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    assert Tokenizer.find(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json.*prompt_token_ids"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(CheckpointError, match="can't be read"):
        Tokenizer.load(tmp_path)
    save(byte_level(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="no JSON object"):
        Tokenizer.load(tmp_path)


def test_half_a_surrogate_pair_is_refused(loaded: dict[str, Tokenizer]) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        loaded["bytes"].encode("a\ud800")


USER = {"role": "user", "content": "hi"}


def test_chat_template_is_found_where_models_keep_it(tmp_path: Path) -> None:
    directory = save(byte_level(), tmp_path)
    template = Tokenizer.load(directory).facts.chat_template
    assert template is not None
    rendered = ChatTemplate(template, {"bos_token": BOS}).render([USER])
    assert rendered == "<s>[user]hi\n[assistant]"
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    save(byte_level(), tmp_path, chat_template=named)
    assert Tokenizer.load(directory).facts.chat_template == "d"
    (directory / "chat_template.jinja").write_text("file")
    assert Tokenizer.load(directory).facts.chat_template == "file"
    save(byte_level(), tmp_path / "none", chat_template=None)
    assert Tokenizer.load(tmp_path / "none").facts.chat_template is None


TEMPLATES = {
    "blocks": "{% for m in messages %}\n    {% if m.role == 'user' %}\n<{{ m.content }}>"
    "\n    {% endif %}\n{% endfor %}\n",
    "json": "{{ messages | tojson }}{{ {'b': '<é>', 'a': 1} | tojson(indent=2) }}",
    "loop": "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}"
    "{{ m.role }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
    "generation": "{% generation %}{{ messages[0].content | trim }}{% endgeneration %}!",
    "date": "{{ strftime_now('%Y')[:2] }}{{ 'none' if tools is none else tools }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_transformers_does(name: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    messages = [{"role": "user", "content": " a <b> é "}, {"role": "assistant", "content": "c"}]
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token=BOS, eos_token=EOS, chat_template=TEMPLATES[name]
    )
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens = {"bos_token": BOS, "eos_token": EOS}
    assert ChatTemplate(TEMPLATES[name], tokens).render(messages) == expected


def test_content_as_parts_is_joined_and_other_kinds_refused() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([{"role": "user", "content": parts}]) == "ab"
    image = [{"type": "image_url", "image_url": {"url": "data:secret"}}]
    with pytest.raises(RequestError, match="text alone") as caught:
        template.render([{"role": "user", "content": image}])
    assert caught.value.param == "messages" and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[0].__class__.__mro__[1].__subclasses__() }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
    ],
)
def test_what_a_template_refuses_is_a_request_error(source: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        ChatTemplate(source, {}).render([USER])


def test_a_broken_template_is_the_checkpoint_s_fault() -> None:
    with pytest.raises(CheckpointError, match="chat template can't be read"):
        ChatTemplate("{% if %}", {})


def test_switches_reach_the_template_but_replace_nothing() -> None:
    template = ChatTemplate("{{ enable_thinking }}{{ messages | length }}", {})
    switches = {"enable_thinking": False, "messages": []}
    assert template.render([USER], switches) == "False1"
