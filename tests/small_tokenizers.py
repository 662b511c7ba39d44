"""Small tokenizers of each kind, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from parallel.text.vocabulary import byte_alphabet

BOS, EOS = "<s>", "</s>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
_MERGES = ("he", "th", "in", "er", "an", "the", "ing", "hell", "hello")


def byte_level() -> Tokenizer:
    """GPT-2's kind: ids 0 and 1 are special, one id for each byte, some merges, an added token."""
    words = [BOS, EOS, *byte_alphabet(), "Ġ" + "t", *_pieces()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.BPE(vocabulary, _merges(vocabulary)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([BOS, EOS])
    made.add_tokens([AddedToken("<tool call>", normalized=False), AddedToken("Ünicode→")])
    return made


def pieces() -> Tokenizer:
    """SentencePiece's kind with byte fallback, as in Llama 2."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [BOS, EOS, "<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *letters]
    words += ["▁a", "▁the", "▁▁", "é", "你", *_pieces()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    model = models.BPE(
        vocabulary, _merges(vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens([BOS, EOS, "<unk>"])
    return made


def metaspace() -> Tokenizer:
    words = [BOS, EOS, "<unk>", "▁", "▁the", "▁a", "b", "c", "d", "é", "the"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens([BOS, EOS, "<unk>"])
    return made


def save(made: Tokenizer, directory: Path, **config: object) -> Path:
    """Writes `directory` as a model's: tokenizer.json, its configuration, a chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    body = {"bos_token": BOS, "eos_token": {"content": EOS}, "chat_template": TEMPLATE, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(body))
    return directory


def _pieces() -> list[str]:
    return sorted({word[:end] for word in _MERGES for end in range(2, len(word) + 1)})


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    found = [(word[:-1], word[-1]) for word in _pieces()]
    return [(a, b) for a, b in found if a in vocabulary and b in vocabulary]
