"""GGUF vocabulary → `tokenizer.json` and `tokenizer_config.json`.

Byte-level BPE alone; each `tokenizer.ggml.pre` names how text is cut before merging
(llama.cpp, src/llama-vocab.cpp).
"""

from __future__ import annotations

from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from parallel.conversion.reader import GgufFile
from parallel.errors import CheckpointError

_DIGITS = "%DIGITS%"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%DIGITS%| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {
    "llama-bpe": _WORDS.replace(_DIGITS, r"\p{N}{1,3}"),
    "qwen2": _WORDS.replace(_DIGITS, r"\p{N}"),
}
_KNOWN = ("smollm", "gpt-2", *_PATTERNS)
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """Raises `CheckpointError` for tokenizers other than byte-level BPE of a known kind."""
    model, pre = file.text("tokenizer.ggml.model"), file.text("tokenizer.ggml.pre", "default")
    if model != "gpt2" or pre not in _KNOWN:
        raise CheckpointError(
            f"{file.path}: tokenizer '{model}' with pre-tokenizer '{pre}' can't be converted; "
            f"known: gpt2 with {', '.join(_KNOWN)}; "
            "give the Hugging Face directory of the model instead"
        )
    words, vocabulary, merges = _vocabulary(file)
    bpe = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe")
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _post_processor(file, words, pre)
    _add_tokens(tokenizer, words, file.get("tokenizer.ggml.token_type") or [])
    return tokenizer


def _vocabulary(file: GgufFile) -> tuple[list[str], dict[str, int], list[tuple[str, str]]]:
    """Words by id, ids by word, and merges of words that exist."""
    words: list[str] = file.get("tokenizer.ggml.tokens") or []
    vocabulary = {word: i for i, word in enumerate(words)}
    merges: list[tuple[str, str]] = []
    for merge in file.get("tokenizer.ggml.merges") or []:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise CheckpointError(
                f"{file.path} is damaged: the merge '{merge}' is not of words in its vocabulary; "
                "copy or download it again"
            )
        merges.append((left, right))
    if not merges or len(vocabulary) != len(words):
        raise CheckpointError(
            f"{file.path} has {len(words)} words, {len(vocabulary)} of them different, and "
            f"{len(merges)} merges: no usable vocabulary; get a complete GGUF"
        )
    return words, vocabulary, merges


def tokenizer_config(file: GgufFile) -> dict[str, Any]:
    words: list[str] = file.get("tokenizer.ggml.tokens") or []
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {f"{name}_token": file.token_id(role) for name, role in roles.items()}
    config: dict[str, Any] = {name: words[i] for name, i in ids.items() if i is not None}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.integer(f"{file.architecture}.context_length"),
        "clean_up_tokenization_spaces": False,
    }
    template = chat_template(file)
    return config | ({"chat_template": template} if template else {})


def chat_template(file: GgufFile) -> str:
    """The Jinja template; empty where the file has none."""
    return file.text("tokenizer.chat_template", "")


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    by_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "gpt-2":
        return by_regex
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, by_regex])
    split = pre_tokenizers.Split(Regex(_PATTERNS[pre]), behavior="isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, plain])


def _post_processor(file: GgufFile, words: list[str], pre: str) -> processors.PostProcessor:
    adds_bos = file.get("tokenizer.ggml.add_bos_token")
    bos = file.token_id("bos")
    if bos is None or not (pre == "llama-bpe" if adds_bos is None else adds_bos):
        return processors.ByteLevel(trim_offsets=False)
    return processors.TemplateProcessing(
        single=[words[bos], "$A"],
        pair=[words[bos], "$A", f"{words[bos]}:1", "$B:1"],
        special_tokens=[(words[bos], bos)],
    )


def _add_tokens(tokenizer: Tokenizer, words: list[str], kinds: list[int]) -> None:
    """Control tokens are special: cut out of the text first, left out when decoding."""
    for word, kind in zip(words, kinds, strict=False):
        if kind in (_UNKNOWN, _CONTROL):
            tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(word, special=False, normalized=False)])
