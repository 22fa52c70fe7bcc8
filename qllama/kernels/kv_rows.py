"""Keys and values by position, for files: the layouts of `kv_layout`, undone and done again.

A row is what one head stores of one position, as bytes: for `f16` the head_size halves;
for `q8` the head_size codes (of keys offset by 128, of values signed), then the halves that
scale each 32 of them. Rows are the same whatever order the kernels read. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from qllama.kernels.kv_layout import CHUNK, Q8, chunk_bytes, value_panel_bytes
from qllama.kernels.panel import PANEL
from qllama.quant.types import BLOCK, QUANT_TYPES, TILE_ROWS

__all__ = ["row_widths", "to_chunks", "to_floats", "to_rows"]

_Bytes = npt.NDArray[np.uint8]

_GROUP = 4  # consecutive dimensions of one position in a tile
_TILE_BLOCK = QUANT_TYPES["q8_0"].tile_block_n_bytes
_HALF = np.dtype("<u2")


def row_widths(kv_type: int, head_size: int) -> tuple[int, int]:
    """Bytes of a row's codes, and how many halves follow them.

    Parameters
    ----------
    kv_type : int
        Place in `KV_TYPES`.
    head_size : int
        A multiple of 32.
    """
    return (head_size, head_size // BLOCK) if kv_type == Q8 else (0, head_size)


def to_rows(chunks: _Bytes, kv_type: int, head_size: int, n_positions: int) -> _Bytes:
    """Return the first positions' rows.

    Parameters
    ----------
    chunks : uint8, (2, n_layers, n_kv_heads, n_chunks, chunk_bytes)
        Keys, then values, as `KvCache.read` gives them.
    kv_type, head_size : int
        As in `row_widths`.
    n_positions : int
        At most `n_chunks * CHUNK`.

    Returns
    -------
    uint8, (2, n_layers, n_kv_heads, n_positions, row_bytes)
    """
    _, n_layers, n_heads, n_chunks, _ = chunks.shape
    n_codes, n_halves = row_widths(kv_type, head_size)
    rows = np.empty((2, n_layers, n_heads, n_positions, n_codes + 2 * n_halves), np.uint8)
    for field, columns, kind in _fields(chunks, kv_type, head_size):
        part = np.ascontiguousarray(field).view(np.uint8)
        part = part.reshape(n_layers, n_heads, n_chunks * CHUNK, columns.stop - columns.start)
        rows[kind, ..., columns] = part[:, :, :n_positions]
    return rows


def to_chunks(rows: _Bytes, kv_type: int, head_size: int) -> _Bytes:
    """Return chunks that hold `rows`, and zeros after them.

    Parameters
    ----------
    rows : uint8, (2, n_layers, n_kv_heads, n_positions, row_bytes)
        As `to_rows` returns them.
    kv_type, head_size : int
        As in `row_widths`.

    Returns
    -------
    uint8, (2, n_layers, n_kv_heads, n_chunks, chunk_bytes)
    """
    _, n_layers, n_heads, n_positions, _ = rows.shape
    n_chunks = -(-n_positions // CHUNK)
    size = chunk_bytes(kv_type, head_size)
    chunks = np.zeros((2, n_layers, n_heads, n_chunks, size), np.uint8)
    for field, columns, kind in _fields(chunks, kv_type, head_size):
        width = columns.stop - columns.start
        part = np.zeros((n_layers, n_heads, n_chunks * CHUNK, width), np.uint8)
        part[:, :, :n_positions] = rows[kind, ..., columns]
        field[...] = part.view(field.dtype).reshape(field.shape)
    return chunks


def to_floats(rows: _Bytes, kv_type: int, head_size: int) -> npt.NDArray[np.float32]:
    """Return the numbers that rows stand for.

    Parameters
    ----------
    rows : uint8, (2, n_layers, n_kv_heads, n_positions, row_bytes)
        As `to_rows` returns them.
    kv_type, head_size : int
        As in `row_widths`.

    Returns
    -------
    float32, (2, n_layers, n_kv_heads, n_positions, head_size)
        Keys, then values.
    """
    n_codes, _ = row_widths(kv_type, head_size)
    halves = np.ascontiguousarray(rows[..., n_codes:]).view("<f2").astype(np.float32)
    if kv_type != Q8:
        return halves
    codes = rows[..., :n_codes]
    keys, values = codes[:1].astype(np.int16) - 128, codes[1:].view(np.int8).astype(np.int16)
    scaled: npt.NDArray[np.float32] = np.concatenate([keys, values]) * np.repeat(halves, BLOCK, -1)
    return scaled


def _fields(
    chunks: _Bytes, kv_type: int, head_size: int
) -> Iterator[tuple[npt.NDArray[Any], slice, int]]:
    """Yield views of `chunks` in the order of rows, with a row's bytes, of keys (0) or values (1).

    Their axes: layer, head, chunk, those of the position in it, those of the dimension.
    """
    n_codes, n_halves = row_widths(kv_type, head_size)
    columns = [slice(0, n_codes), slice(n_codes, n_codes + 2 * n_halves)]
    for kind, views in enumerate((_key_views, _value_views)):
        fields = views(chunks[kind], kv_type, head_size)
        for field, place in zip(fields, columns[-len(fields) :], strict=True):
            yield field, place, kind


def _key_views(chunks: _Bytes, kv_type: int, head_size: int) -> list[npt.NDArray[Any]]:
    lead = chunks.shape[:3]
    if kv_type != Q8:
        panels = chunks.view(_HALF).reshape(*lead, CHUNK // PANEL, head_size, PANEL)
        return [panels.swapaxes(-1, -2)]
    tiles = chunks.reshape(*lead, CHUNK // TILE_ROWS, head_size // BLOCK, _TILE_BLOCK)
    n_codes = BLOCK * TILE_ROWS
    codes = tiles[..., :n_codes].reshape(*tiles.shape[:-1], BLOCK // _GROUP, TILE_ROWS, _GROUP)
    return [np.moveaxis(codes, -2, -4), tiles[..., n_codes:].view(_HALF).swapaxes(-1, -2)]


def _value_views(chunks: _Bytes, kv_type: int, head_size: int) -> list[npt.NDArray[Any]]:
    lead = (*chunks.shape[:3], head_size // PANEL)
    if kv_type != Q8:
        return [chunks.view(_HALF).reshape(*lead, CHUNK, PANEL).swapaxes(-3, -2)]
    panels = chunks.reshape(*lead, value_panel_bytes(kv_type))
    n_codes = CHUNK * PANEL
    codes = panels[..., :n_codes].reshape(*lead, CHUNK, PANEL)
    return [codes.swapaxes(-3, -2), panels[..., n_codes:].view(_HALF).swapaxes(-1, -2)]
