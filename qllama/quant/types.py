"""The weight types: their names, block sizes and exact storage sizes.

Owns the table every other part sizes tensors from. Knows no file and no kernel;
what the bytes mean is the business of the codecs beside this file.
"""

from __future__ import annotations

from dataclasses import dataclass

from qllama.errors import UnsupportedModelError

__all__ = [
    "BLOCK",
    "QUANT_TYPES",
    "TILE_ROWS",
    "QuantType",
    "matrix_n_bytes",
    "padded_shape",
    "quant_type",
    "vector_n_bytes",
]

TILE_ROWS = 16
"""Rows of one tile: the lanes of one 512-bit vector of float32."""

BLOCK = 32
"""Consecutive k that share one scale; every row is padded to a multiple of it."""


@dataclass(frozen=True, slots=True)
class QuantType:
    """One weight type and what its storage takes.

    Parameters
    ----------
    name : str
        As it stands in a `.qlm` tensor table.
    bits_per_weight : float
        Nominal, without padding and without the row factors of `q4`, `q5` and `q6`.
    block_size : int
        Consecutive k that share a scale: 32, or 1 for the float types.
    tile_block_n_bytes : int
        Bytes that 16 rows x 32 k take, scales included.
    tile_tail_n_bytes : int
        Bytes after the last block of every tile (the row factors of `q4`, `q5` and `q6`).
    """

    name: str
    bits_per_weight: float
    block_size: int
    tile_block_n_bytes: int
    tile_tail_n_bytes: int = 0


QUANT_TYPES: dict[str, QuantType] = {
    t.name: t
    for t in (
        QuantType("f32", 32.0, 1, 2048),
        QuantType("f16", 16.0, 1, 1024),
        QuantType("bf16", 16.0, 1, 1024),
        QuantType("q8_0", 8.5, BLOCK, 544),
        QuantType("q4_0", 4.5, BLOCK, 288),
        QuantType("q4", 4.5, BLOCK, 288, 128),
        QuantType("q5", 5.375, BLOCK, 344, 64),
        QuantType("q6", 6.5, BLOCK, 416, 128),
    )
}


def quant_type(name: str) -> QuantType:
    """Look a type up by name.

    Raises
    ------
    UnsupportedModelError
        When there is no such type; lists those there are.
    """
    found = QUANT_TYPES.get(name)
    if found is None:
        raise UnsupportedModelError(
            f"weight type: expected one of {', '.join(QUANT_TYPES)}, found {name!r}"
        )
    return found


def padded_shape(rows: int, k: int) -> tuple[int, int]:
    """Round `rows` up to a multiple of 16 and `k` up to one of 32."""
    return -(-rows // TILE_ROWS) * TILE_ROWS, -(-k // BLOCK) * BLOCK


def matrix_n_bytes(type_name: str, rows: int, k: int) -> int:
    """Bytes that a matrix takes in tile16 storage, padding included.

    Parameters
    ----------
    type_name : str
    rows, k : int
        Without padding.

    Raises
    ------
    UnsupportedModelError
        When there is no such type.
    """
    kind = quant_type(type_name)
    padded_rows, padded_k = padded_shape(rows, k)
    tile = padded_k // BLOCK * kind.tile_block_n_bytes + kind.tile_tail_n_bytes
    return padded_rows // TILE_ROWS * tile


def vector_n_bytes(type_name: str, n: int) -> int:
    """Bytes that a row-major vector takes; vectors are never quantized.

    Parameters
    ----------
    type_name : str
        `f32`, `f16` or `bf16`.
    n : int
        Values.

    Raises
    ------
    UnsupportedModelError
        When there is no such type, or it is a block type.
    """
    kind = quant_type(type_name)
    if kind.block_size != 1:
        raise UnsupportedModelError(
            f"weight type of a vector: expected f32, f16 or bf16, found {type_name!r}"
        )
    return n * int(kind.bits_per_weight) // 8
