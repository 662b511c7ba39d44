"""Token ids to text piece by piece: what was given out never changes with later tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

from parallel.text.tokenizer import Tokenizer
from parallel.text.vocabulary import DecoderKind

REPLACEMENT = "\ufffd"


class Pieces(Protocol):
    """All pieces and the rest together are the decoded text of all tokens."""

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens make certain; special tokens make none."""
        ...

    def flush(self) -> str:
        """What was held back."""
        ...


class BytePieces:
    """For byte-level vocabularies: holds back at most the 3 bytes of an unfinished character."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        known = self._tokenizer
        return self._decoder.decode(b"".join(map(known.token_bytes, known.visible(ids))))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowPieces:
    """For any decoder: decodes the last tokens again with those before them as context.

    Holds back while the text ends in half a character, or in a byte token: the bytes of a run are
    decoded together, so that a later one can change what the earlier ones mean. `continues` says
    that text goes before, so that a first space is kept."""

    def __init__(self, tokenizer: Tokenizer, continues: bool):
        self._tokenizer = tokenizer
        anchor = tokenizer.encode("a", add_special_tokens=False)[-1:] if continues else []
        self._window: list[int] = anchor
        self._given = len(anchor)
        self._given_text = tokenizer.decode(anchor)

    def push(self, ids: Iterable[int]) -> str:
        fresh = self._tokenizer.visible(ids)
        self._window.extend(fresh)
        if not fresh or self._window[-1] in self._tokenizer.byte_ids:
            return ""
        text = self._tokenizer.decode(self._window)
        if len(text) <= len(self._given_text) or text.endswith(REPLACEMENT):
            return ""
        piece = text[len(self._given_text) :]
        self._window = self._window[self._given :]
        self._given = len(self._window)
        self._given_text = self._tokenizer.decode(self._window)
        return piece

    def flush(self) -> str:
        text = self._tokenizer.decode(self._window)
        piece = text[len(self._given_text) :]
        self._given, self._given_text = len(self._window), text
        return piece


def make_pieces(tokenizer: Tokenizer, continues: bool = False) -> Pieces:
    if tokenizer.kind is DecoderKind.BYTES:
        return BytePieces(tokenizer)
    return WindowPieces(tokenizer, continues)
