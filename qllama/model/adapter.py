"""Adapters: low-rank updates of a model's matrices, computed beside them.

Owns their layout in memory and the records that bind one to an engine. Knows no file and
no format; `low_rank` computes.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qllama.errors import ConversionError
from qllama.kernels.linear import linear
from qllama.model.arena import Arena
from qllama.model.buffers import Buffers
from qllama.model.records import DOWN, GATE, MATRICES, UP, K, O, Q, V
from qllama.quant import codec
from qllama.quant.types import BLOCK, TILE_ROWS
from qllama.tensors import EMBEDDING, HEAD

__all__ = ["Adapter", "LowRankPair", "bind"]

# Matrices, by index, that read the same input: A x of all of them is held at once.
_PHASES = ((Q, K, V), (O,), (GATE, UP), (DOWN,))


#: Matrices (rows, r) and (r, k) whose product is added to one of (rows, k), float32.
LowRankPair = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
_Bytes = npt.NDArray[np.uint8]


class _Placed(NamedTuple):
    """Fields of a LINEAR record."""

    low_a: int
    low_b: int
    low_tiles: int
    low_blocks: int


class Adapter:
    """Updates of a model's matrices, in the order in which the float32 kernel reads them.

    Parameters
    ----------
    updates : mapping of str to sequence of LowRankPair
        Canonical tensor name to the updates of it, which add up.

    Attributes
    ----------
    digest : bytes
        SHA-256 of all of it: with the same one, a model computes the same.
    n_bytes : int
        Memory that it takes.

    Raises
    ------
    ConversionError
        A value is not finite; names the tensor.
    OutOfMemoryError
        This machine has not the memory.
    """

    def __init__(self, updates: Mapping[str, Sequence[LowRankPair]]) -> None:
        digest = hashlib.sha256()
        arena = Arena()
        packed: dict[str, tuple[_Bytes, _Bytes, int]] = {}
        for name, pairs in sorted(updates.items()):
            left = np.concatenate([left for left, _ in pairs], axis=1)
            right = np.concatenate([right for _, right in pairs])
            a, b = _packed(name, left, right)
            packed[name] = a, b, right.shape[0]
            for part, array in (("a", a), ("b", b)):
                arena.reserve(f"{name} {part}", array.nbytes)
                digest.update(f"{name} {part} {array.nbytes} ".encode())
                digest.update(array.data)
        self.digest = digest.digest()
        self.n_bytes = sum(a.nbytes + b.nbytes for a, b, _ in packed.values())
        self._arena = arena
        self._addresses = arena.allocate("the adapters", "load fewer")
        self.matrices: dict[str, _Placed] = {}
        for name, (a, b, rank) in packed.items():
            places = self._addresses[f"{name} a"], self._addresses[f"{name} b"]
            for place, array in zip(places, (a, b), strict=True):
                ctypes.memmove(place, array.ctypes.data, array.nbytes)
            self.matrices[name] = _Placed(*places, -(-rank // TILE_ROWS), -(-rank // BLOCK))


def _packed(
    name: str, left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]
) -> tuple[_Bytes, _Bytes]:
    """Return A and B; of the embedding, whose input is a token's number, A's columns as rows."""
    floats = codec("f32")
    try:
        if name == EMBEDDING:
            floats.check_weights(left)
            columns = np.pad(left, ((0, 0), (0, -left.shape[1] % BLOCK)))
            return columns.reshape(-1).view(np.uint8), floats.quantize(
                np.ascontiguousarray(right.T)
            )
        return floats.quantize(right), floats.quantize(left)
    except ConversionError as e:
        raise ConversionError(f"the adapter's update of {name}: {e}") from None


def bind(adapter: Adapter | None, linears: npt.NDArray[np.void], buffers: Buffers) -> None:
    """Have an engine compute an adapter's updates, or none.

    Parameters
    ----------
    adapter : Adapter or None
        For the engine's model; must live as long as it is bound.
    linears : LINEAR records, (n_layers + 1, 7)
        The engine's.
    buffers : Buffers
        The engine's.
    """
    n_layers = len(linears) - 1
    places = {EMBEDDING: (n_layers, 0), HEAD: (n_layers, 1)}
    for i in range(n_layers):
        places |= {f"model.layers.{i}.{m}.weight": (i, j) for j, m in enumerate(MATRICES)}
    placed = {} if adapter is None else adapter.matrices
    blocks = np.zeros(linears.shape, np.int64)
    for name, matrix in placed.items():
        blocks[places[name]] = matrix.low_blocks
    starts = np.zeros_like(blocks)
    for phase in _PHASES:
        starts[:, phase] = np.cumsum(blocks[:, phase], axis=1) - blocks[:, phase]
    packings = {"hidden_f32" if places[name][1] == DOWN else "packed_f32" for name in placed}
    inner = buffers.reserve_low_rank(int((starts + blocks).max()), packings)
    for field in _Placed._fields:
        linears[field] = 0
    for name, matrix in placed.items():
        for field, value in zip(_Placed._fields, matrix, strict=True):
            linears[places[name]][field] = value
    linears["low_packed"] = inner + buffers.inner_block_bytes * starts
    linears["low_kernel"] = linear("f32").address if placed else 0
