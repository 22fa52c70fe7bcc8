"""Writes SentencePiece models.

Owns the few fields of `sentencepiece.ModelProto` (`sentencepiece_model.proto`)
that describe a vocabulary with scores, in protobuf's wire format. By hand,
because four field types do not earn a dependency on protobuf.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNKNOWN", "UNUSED", "USER_DEFINED", "model_proto"]

# SentencePiece.Type; GGUF's `tokenizer.ggml.token_type` has the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_MODEL_TYPE_BPE = 2


def model_proto(
    pieces: Sequence[tuple[str, float, int]], *, add_dummy_prefix: bool, byte_fallback: bool
) -> bytes:
    """Return a serialized BPE model that does nothing to the text but escape spaces.

    Parameters
    ----------
    pieces : sequence of (piece, score, type)
        In the order of their ids. SentencePiece wants them distinct and not
        empty, and exactly one of type `UNKNOWN`.
    add_dummy_prefix : bool
        Put a space before every text.
    byte_fallback : bool
        Spell what is not in the vocabulary by the 256 pieces of type `BYTE`.
    """
    trainer_spec = (
        _varint(3, _MODEL_TYPE_BPE) + _varint(4, len(pieces)) + _varint(35, byte_fallback)
    )
    normalizer_spec = (
        _bytes(1, b"identity")
        + _varint(3, add_dummy_prefix)
        + _varint(4, False)  # remove_extra_whitespaces
        + _varint(5, True)  # escape_whitespaces
    )
    return b"".join(_pieces(pieces)) + _bytes(2, trainer_spec) + _bytes(3, normalizer_spec)


def _pieces(pieces: Iterable[tuple[str, float, int]]) -> Iterable[bytes]:
    for piece, score, kind in pieces:
        yield _bytes(1, _bytes(1, piece.encode()) + _float(2, score) + _varint(3, kind))


def _unsigned(value: int) -> bytes:
    """Base 128, least significant group first, all but the last with the high bit set."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _tag(number: int, wire_type: int) -> bytes:
    return _unsigned(number << 3 | wire_type)


def _varint(number: int, value: int) -> bytes:
    return _tag(number, _VARINT) + _unsigned(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _tag(number, _BYTES) + _unsigned(len(value)) + value


def _float(number: int, value: float) -> bytes:
    return _tag(number, _FIXED32) + struct.pack("<f", value)
