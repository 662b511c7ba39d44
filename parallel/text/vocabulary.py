"""What bytes a token stands for, by the kind of decoder that a tokenizer.json names."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


class DecoderKind(Enum):
    """BYTES: each character of a token is a byte (GPT-2, Llama 3, Qwen). PIECES: '▁' is a space
    and '<0xAB>' a byte (SentencePiece: Llama 2, Mistral). OTHER: whatever the library does."""

    BYTES = "bytes"
    PIECES = "pieces"
    OTHER = "other"


def decoder_kind(decoder: dict[str, Any] | None) -> DecoderKind:
    """`decoder` is that entry of tokenizer.json."""
    if decoder is None:
        return DecoderKind.OTHER
    parts = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return DecoderKind.BYTES
    if "Metaspace" in kinds or any(_is_space(part) for part in parts):
        return DecoderKind.PIECES
    return DecoderKind.OTHER


def _is_space(part: dict[str, Any]) -> bool:
    return part.get("type") == "Replace" and part.get("pattern") == {"String": _SPACE}


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: character → byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    plain += range(ord("®"), ord("ÿ") + 1)
    others = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def byte_level_bytes(token: str, alphabet: dict[str, int]) -> bytes:
    """A token with a character outside the alphabet (an added one) stands for its own UTF-8."""
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


def piece_bytes(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte:
        return bytes([int(byte[1], 16)])
    return token.replace(_SPACE, " ").encode()


def is_byte_token(token: str) -> bool:
    return _BYTE_TOKEN.fullmatch(token) is not None
