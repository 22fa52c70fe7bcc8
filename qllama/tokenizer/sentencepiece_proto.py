"""Writes and changes SentencePiece models, and reads of them what the library does not tell.

Owns the few fields of `sentencepiece.ModelProto` (`sentencepiece_model.proto`)
that qllama needs, in protobuf's wire format. By hand, because four field types
do not earn a dependency on protobuf.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "BYTE",
    "CONTROL",
    "NORMAL",
    "UNKNOWN",
    "UNUSED",
    "USER_DEFINED",
    "model_proto",
    "read_pieces",
    "with_dummy_prefix",
    "with_pieces",
]

# SentencePiece.Type; GGUF's `tokenizer.ggml.token_type` has the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_MODEL_TYPE_BPE = 2

_PIECES, _TRAINER_SPEC, _NORMALIZER_SPEC = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_ADD_DUMMY_PREFIX = 3


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
        _varint(3, _MODEL_TYPE_BPE)
        + _varint(4, len(pieces))  # vocab_size
        + _varint(35, byte_fallback)
    )
    normalizer_spec = (
        _bytes(1, b"identity")
        + _varint(_ADD_DUMMY_PREFIX, add_dummy_prefix)
        + _varint(4, False)  # remove_extra_whitespaces
        + _varint(5, True)  # escape_whitespaces
    )
    return (
        b"".join(_written(pieces))
        + _bytes(_TRAINER_SPEC, trainer_spec)
        + _bytes(_NORMALIZER_SPEC, normalizer_spec)
    )


def read_pieces(model: bytes) -> list[tuple[str, int]]:
    """Return the piece and the type of each token of a serialized model, in order.

    Raises
    ------
    ValueError, IndexError
        When the bytes are no such model, or a piece is not UTF-8.
    """
    pieces: list[tuple[str, int]] = []
    at = 0
    while at < len(model):
        number, start, at = _field(model, at)
        if number == _PIECES:
            piece, kind = "", NORMAL
            while start < at:
                inner, value_at, start = _field(model, start)
                if inner == _PIECE:
                    piece = model[value_at:start].decode()
                elif inner == _TYPE:
                    kind = model[value_at]
            pieces.append((piece, kind))
    return pieces


def with_pieces(model: bytes, pieces: Mapping[int, tuple[str, int]]) -> bytes:
    """Return a serialized model with some of its tokens changed, and others behind them.

    Everything else in the model stays as it is, byte for byte.

    Parameters
    ----------
    model : bytes
        A model that `read_pieces` can read.
    pieces : mapping of int to (piece, type)
        By token id. The ids that the model does not have must follow its last one
        without a gap; their score is 0.
    """
    # Of a scalar field that is there twice, protobuf takes the last: so a change is appended.
    changes = {
        token_id: _bytes(_PIECE, piece.encode()) + _varint(_TYPE, kind)
        for token_id, (piece, kind) in sorted(pieces.items())
    }
    written = bytearray()
    n_pieces = at = 0
    while at < len(model):
        begin = at
        number, start, at = _field(model, at)
        if number == _PIECES and n_pieces in changes:
            written += _bytes(_PIECES, model[start:at] + changes.pop(n_pieces))
        else:
            written += model[begin:at]
        n_pieces += number == _PIECES
    return bytes(written) + b"".join(_bytes(_PIECES, change) for change in changes.values())


def with_dummy_prefix(model: bytes, add_dummy_prefix: bool) -> bytes:
    """Return a serialized model that puts a space before every text, or none.

    Parameters
    ----------
    model : bytes
        Stays as it is, byte for byte, but for this.
    add_dummy_prefix : bool
        Whether it does.
    """
    # Protobuf merges messages that are there twice.
    return model + _bytes(_NORMALIZER_SPEC, _varint(_ADD_DUMMY_PREFIX, add_dummy_prefix))


def _field(data: bytes, at: int) -> tuple[int, int, int]:
    """Return the number of the field at `at`, and where its value starts and ends."""
    tag, at = _read_varint(data, at)
    wire_type = tag & 7
    if wire_type == _BYTES:
        length, at = _read_varint(data, at)
        return tag >> 3, at, at + length
    if wire_type == _FIXED32:
        return tag >> 3, at, at + 4
    if wire_type == _VARINT:
        return tag >> 3, at, _read_varint(data, at)[1]
    raise ValueError(f"byte {at}: wire type {wire_type}")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _written(pieces: Iterable[tuple[str, float, int]]) -> Iterable[bytes]:
    for piece, score, kind in pieces:
        yield _bytes(
            _PIECES,
            _bytes(_PIECE, piece.encode()) + _float(_SCORE, score) + _varint(_TYPE, kind),
        )


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
