"""Text to token ids and back, from the tokenizer.json of a model directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers

from parallel.errors import CheckpointError, RequestError
from parallel.text.files import chat_template, declared_ids, special_tokens
from parallel.text.vocabulary import (
    DecoderKind,
    byte_alphabet,
    byte_level_bytes,
    decoder_kind,
    is_byte_token,
    piece_bytes,
)

FILE = "tokenizer.json"


@dataclass(frozen=True)
class TextFacts:
    """What a directory says beside tokenizer.json; `tokens` maps 'bos_token' … to text."""

    tokens: dict[str, str]
    bos_token_ids: tuple[int, ...]
    eos_token_ids: tuple[int, ...]
    chat_template: str | None


class Tokenizer:
    """Safe to use from several threads."""

    def __init__(self, library: tokenizers.Tokenizer, facts: TextFacts):
        self._library, self.facts = library, facts
        # The whole as JSON would leave as much memory behind as a fifth of the tokenizer.
        decoder = json.loads(library.decoder.__getstate__()) if library.decoder else None
        self.kind = decoder_kind(decoder)
        self._alphabet = byte_alphabet()
        added = library.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Raises `CheckpointError` when there is no tokenizer.json or it can't be read."""
        found = cls.find(directory)
        if found is None:
            raise CheckpointError(
                f"{directory} has no {FILE}: text can't be made into tokens. Copy the model's "
                f"{FILE} there (transformers' `save_pretrained` of a fast tokenizer writes it), or "
                "give token ids: generate.py takes prompt_token_ids and needs no tokenizer"
            )
        return found

    @classmethod
    def find(cls, directory: Path) -> Tokenizer | None:
        """As `load`, but None when there is no tokenizer.json."""
        file = Path(directory) / FILE
        if not file.is_file():
            return None
        try:
            library = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"{file} can't be read: {error}; fetch it again") from None
        library.no_truncation()
        library.no_padding()
        tokens = special_tokens(file.parent)
        ids = {name: library.token_to_id(text) for name, text in tokens.items()}
        named = {name: () if i is None else (i,) for name, i in ids.items()}
        facts = TextFacts(
            tokens,
            declared_ids(file.parent, "bos_token_id") or named.get("bos_token", ()),
            declared_ids(file.parent, "eos_token_id") or named.get("eos_token", ()),
            chat_template(file.parent),
        )
        return cls(library, facts)

    @property
    def vocabulary_size(self) -> int:
        """One more than the highest id, added tokens included."""
        return max(self._library.get_vocab().values(), default=-1) + 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Raises `RequestError` for text that no UTF-8 can hold (a lone surrogate)."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(
                "the text holds half of a surrogate pair, which is no character; send whole "
                "Unicode characters"
            ) from None
        return self._library.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids outside the vocabulary stand for nothing."""
        return self._library.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to the text, special ones by their name."""
        text = self._library.id_to_token(token)
        if text is None:
            return b""
        if self.kind is DecoderKind.BYTES:
            return byte_level_bytes(text, self._alphabet)
        return piece_bytes(text) if self.kind is DecoderKind.PIECES else text.encode()

    def token_text(self, token: int) -> str:
        """A token by itself, with U+FFFD for bytes that are no whole character."""
        return self.token_bytes(token).decode(errors="replace")

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Tokens that stand for one byte each beside others for pieces of text."""
        if self.kind is DecoderKind.BYTES:
            return frozenset()
        vocabulary = self._library.get_vocab()
        return frozenset(i for text, i in vocabulary.items() if is_byte_token(text))

    def visible(self, ids: Iterable[int]) -> list[int]:
        """Without special tokens."""
        return [i for i in ids if i not in self.special_ids]
