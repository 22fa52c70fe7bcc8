"""State files: what a model has read of a conversation, so that it need not read it again.

Owns `docs/state.md`, to the byte. Whatever a file says is checked against the model it
is meant for before any of it is used; the message of every refusal says what to do.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from qllama.errors import ConversionError, StateError
from qllama.format.partial import PartialFile

__all__ = ["State", "StateShape", "decode", "encode", "load", "store"]

MAGIC = b"\x89QLS\r\n\x1a\n"
VERSION = 1
_HEADER = struct.Struct("<8sIIQ32s8s8I")
_CHECKSUM_AT = slice(12, 16)
_PIECE = 1 << 24
_MAX_TEXT = 1 << 26
_INFINITE = np.uint16(0x7C00)


@dataclass(frozen=True, slots=True)
class StateShape:
    """What a state must be of to serve a model.

    Parameters
    ----------
    fingerprint : bytes
        `QlmFile.fingerprint`.
    kv_type : str
        What keys and values are held in.
    n_layers, n_kv_heads : int
    n_codes, n_halves : int
        Of one head's key, or value, at one position: bytes of codes, then finite halves.
    n_ctx, vocab_size : int
        Limits of the tokens.
    """

    fingerprint: bytes
    kv_type: str
    n_layers: int
    n_kv_heads: int
    n_codes: int
    n_halves: int
    n_ctx: int
    vocab_size: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one head's key, or value, at one position."""
        return self.n_codes + 2 * self.n_halves


@dataclass(frozen=True, slots=True)
class State:
    """What a state file holds.

    Parameters
    ----------
    tokens : int32, (n_tokens,)
        Of a text, and of the answer to it.
    rows : uint8, (2, n_layers, n_kv_heads, n_held, row_bytes)
        Keys, then values, of the first tokens.
    prompt : str
        The text that the first `n_prompt` tokens were encoded from; "" where that is unknown.
    n_prompt : int
    """

    tokens: npt.NDArray[np.int32]
    rows: npt.NDArray[np.uint8]
    prompt: str = ""
    n_prompt: int = 0

    @property
    def n_held(self) -> int:
        """Tokens whose keys and values are in `rows`."""
        n_held: int = self.rows.shape[3]
        return n_held


def encode(state: State, shape: StateShape) -> list[bytes | memoryview]:
    """Return the parts that joined are the file.

    Parameters
    ----------
    state : State
    shape : StateShape
        Of the model that made it.
    """
    text = state.prompt.encode()
    rows = np.ascontiguousarray(state.rows).reshape(-1).data
    parts: list[bytes | memoryview] = [state.tokens.astype("<i4").tobytes(), text, rows]
    header = bytearray(
        _HEADER.pack(
            MAGIC,
            VERSION,
            0,
            _HEADER.size + sum(map(len, parts)),
            shape.fingerprint,
            shape.kv_type.encode(),
            *(len(state.tokens), state.n_held, state.n_prompt, len(text)),
            *(shape.n_layers, shape.n_kv_heads, shape.n_codes, shape.n_halves),
        )
    )
    checksum = zlib.crc32(header)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    header[_CHECKSUM_AT] = checksum.to_bytes(4, "little")
    return [bytes(header), *parts]


def decode(data: bytes | bytearray | memoryview, shape: StateShape, where: str = "state") -> State:
    """Check the bytes of a state against the model it is for.

    Parameters
    ----------
    data : bytes, bytearray or memoryview
        Kept alive by the result.
    shape : StateShape
    where : str
        What the data is called in errors.

    Raises
    ------
    StateError
        When it is damaged, no state at all, of another model or too long for `n_ctx`.
    """
    try:
        return _decode(memoryview(data).cast("B"), shape)
    except StateError as error:
        raise StateError(f"{where}: {error}") from None


def store(path: Path, state: State, shape: StateShape) -> None:
    """Write a state file; it is whole or not there.

    Parameters
    ----------
    path : Path
        A file there is replaced.
    state : State
    shape : StateShape
        Of the model that made it.

    Raises
    ------
    StateError
        When the operating system refuses.
    """
    parts = encode(state, shape)
    try:
        file = PartialFile(path, sum(map(len, parts)))
        try:
            for part in parts:
                file.write(part)
            file.commit()
        finally:
            file.discard()
    except ConversionError as error:  # of the shared writer: its message fits
        raise StateError(str(error)) from error


def load(path: Path, shape: StateShape) -> State:
    """Read and check a state file.

    Parameters
    ----------
    path : Path
    shape : StateShape
        Of the model it is for.

    Raises
    ------
    StateError
        As `decode`, and when the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = _read(file, shape, str(path))
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror or error}") from error
    return decode(data, shape, str(path))


def _read(file: BinaryIO, shape: StateShape, where: str) -> bytes:
    """Read a file that can be what it should be: nothing larger is brought into memory."""
    n_bytes = os.fstat(file.fileno()).st_size
    header = file.read(_HEADER.size)
    try:
        _check_header(header, n_bytes, shape)
    except StateError as error:
        raise StateError(f"{where}: {error}") from None
    return header + file.read(n_bytes - len(header))


def _check_header(header: bytes, n_found: int, shape: StateShape) -> tuple[int, ...]:
    """Refuse what cannot be a state of `shape`; return its tokens, held, prompt and text counts."""
    if header[: len(MAGIC)] != MAGIC:
        raise StateError(
            f"not a state: expected it to start with {MAGIC!r}, found {header[: len(MAGIC)]!r}; "
            "give what save_state made"
        )
    if len(header) < _HEADER.size:
        raise StateError(f"truncated: expected at least {_HEADER.size} bytes, found {n_found}")
    _, version, _, n_bytes, fingerprint, kv_type, *numbers = _HEADER.unpack(header)
    if version != VERSION:
        raise StateError(f"version: expected {VERSION}, found {version}; save the state anew")
    if n_found != n_bytes:
        raise StateError(
            f"expected {n_bytes} bytes, found {n_found}: it is damaged; save the state anew"
        )
    if fingerprint != shape.fingerprint:
        raise StateError(
            "it is of another model, or other LoRA adapters (other checksums); load what made it"
        )
    found_type = kv_type.rstrip(b"\0").decode("ascii", "replace")
    if found_type != shape.kv_type:
        raise StateError(
            f"kv_type: expected {shape.kv_type!r}, found {found_type!r}; "
            "load the model with the kv_type that made it"
        )
    counts, sizes = tuple(numbers[:4]), tuple(numbers[4:])
    expected = (shape.n_layers, shape.n_kv_heads, shape.n_codes, shape.n_halves)
    if sizes != expected:
        raise StateError(f"sizes of keys and values: expected {expected}, found {sizes}")
    n_tokens, n_held, n_prompt, n_text = counts
    if n_tokens > shape.n_ctx:
        raise StateError(
            f"it has {n_tokens} tokens, more than the context window of {shape.n_ctx}: "
            "load the model with a larger n_ctx"
        )
    if n_held > n_tokens or n_prompt > n_tokens or n_text > _MAX_TEXT or bool(n_text) > n_prompt:
        raise StateError(
            f"counts: expected at most {n_tokens} tokens held and of the prompt and {_MAX_TEXT} "
            f"bytes of text, found {n_held}, {n_prompt} and {n_text}"
        )
    n_rows = 2 * shape.n_layers * shape.n_kv_heads * n_held
    wanted = _HEADER.size + 4 * n_tokens + n_text + n_rows * shape.row_bytes
    if n_bytes != wanted:
        raise StateError(f"size: expected {wanted} bytes by its counts, found {n_bytes}")
    return counts


def _decode(data: memoryview, shape: StateShape) -> State:
    header = bytes(data[: _HEADER.size])
    n_tokens, n_held, n_prompt, n_text = _check_header(header, len(data), shape)
    checksum = zlib.crc32(header[: _CHECKSUM_AT.start] + bytes(4) + header[_CHECKSUM_AT.stop :])
    for start in range(_HEADER.size, len(data), _PIECE):
        checksum = zlib.crc32(data[start : start + _PIECE], checksum)
    stored = int.from_bytes(header[_CHECKSUM_AT], "little")
    if checksum != stored:
        raise StateError(
            f"checksum: expected {stored:08x}, found {checksum:08x}: it is damaged; "
            "save the state anew"
        )
    text_at = _HEADER.size + 4 * n_tokens
    rows_at = text_at + n_text
    tokens = np.frombuffer(data[_HEADER.size : text_at], "<i4").astype(np.int32)
    if ((tokens < 0) | (tokens >= shape.vocab_size)).any():
        raise StateError(f"tokens: expected ids in 0..{shape.vocab_size - 1}, found others")
    try:
        prompt = bytes(data[text_at:rows_at]).decode()
    except UnicodeDecodeError as error:
        raise StateError(f"text: expected UTF-8, found {error.reason} at {error.start}") from None
    rows = np.frombuffer(data[rows_at:], np.uint8).reshape(
        2, shape.n_layers, shape.n_kv_heads, n_held, shape.row_bytes
    )
    for layer in _layers(rows):
        halves = np.ascontiguousarray(layer[..., shape.n_codes :]).view("<u2")
        # Positions not yet seen are multiplied by weights of zero: nothing may be infinite.
        if ((halves & _INFINITE) == _INFINITE).any():
            raise StateError("keys and values: expected finite numbers, found others")
    return State(tokens, rows, prompt, n_prompt)


def _layers(rows: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the rows layer by layer, each (n_kv_heads, n_held, row_bytes)."""
    for kind in rows:
        yield from kind
