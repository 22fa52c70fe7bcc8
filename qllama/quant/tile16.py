"""The storage order "tile16": from (rows, k) codes to the order kernels read, and back.

Owns the permutation of `docs/format.md` section 3 and nothing of what codes mean.
Everywhere here rows are a multiple of 16 and k is one of 32; r is the row in its
tile, g a group of 4 consecutive k in its block and j the k in its group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qllama.quant.types import BLOCK, TILE_ROWS, padded_shape

__all__ = [
    "GROUP",
    "join_fives",
    "join_nibbles",
    "join_pairs",
    "join_sixes",
    "pad_matrix",
    "split_fives",
    "split_nibbles",
    "split_pairs",
    "split_sixes",
    "tile_codes",
    "tile_per_block",
    "untile_codes",
    "untile_per_block",
]

GROUP = 4
"""Consecutive k of one row that lie side by side: the bytes of one dot-product lane."""

_GROUPS = BLOCK // GROUP
UInt8 = npt.NDArray[np.uint8]


def pad_matrix(values: npt.NDArray[Any], fill: int) -> npt.NDArray[Any]:
    """Extend a matrix to whole tiles.

    Parameters
    ----------
    values : any dtype, (rows, k)
    fill : int
        Goes into the padding.

    Returns
    -------
    the same dtype, padded_shape(rows, k)
        `values` itself where nothing is missing.
    """
    rows, k = values.shape
    shape = padded_shape(rows, k)
    if shape == (rows, k):
        return values
    padded = np.full(shape, fill, values.dtype)
    padded[:rows, :k] = values
    return padded


def tile_codes(codes: UInt8) -> UInt8:
    """Reorder uint8 codes (rows, k) to (tiles, blocks, g, r, j)."""
    rows, k = codes.shape
    split = codes.reshape(rows // TILE_ROWS, TILE_ROWS, k // BLOCK, _GROUPS, GROUP)
    tiled: UInt8 = split.transpose(0, 2, 3, 1, 4)
    return tiled


def untile_codes(tiled: UInt8) -> UInt8:
    """Undo `tile_codes`: (tiles, blocks, g, r, j) to (rows, k)."""
    tiles, blocks = tiled.shape[:2]
    codes: UInt8 = tiled.transpose(0, 3, 1, 2, 4).reshape(tiles * TILE_ROWS, blocks * BLOCK)
    return codes


def join_nibbles(tiled: UInt8) -> UInt8:
    """Pack 4-bit codes (tiles, blocks, 8, r, j) to bytes (tiles, blocks, 4, r, j).

    Group g takes the low half of a byte and group g + 4 its high half.
    """
    half = _GROUPS // 2
    joined: UInt8 = tiled[:, :, :half] | (tiled[:, :, half:] << np.uint8(4))
    return joined


def split_nibbles(joined: UInt8) -> UInt8:
    """Undo `join_nibbles`."""
    return np.concatenate([joined & np.uint8(15), joined >> np.uint8(4)], axis=2)


def join_fives(tiled: UInt8) -> UInt8:
    """Pack 5-bit codes (tiles, blocks, 8, r, j) to bytes (tiles, blocks, 5, r, j).

    Their low bits as `join_nibbles`, then bytes whose bit g is the high bit of group g's code.
    """
    high = [tiled[:, :, g] >> np.uint8(4) << np.uint8(g) for g in range(_GROUPS)]
    plane = np.bitwise_or.reduce(high)[:, :, None]
    return np.concatenate([join_nibbles(tiled & np.uint8(15)), plane], axis=2)


def split_fives(joined: UInt8) -> UInt8:
    """Undo `join_fives`."""
    plane = joined[:, :, 4]
    high = [(plane >> np.uint8(g) & np.uint8(1)) << np.uint8(4) for g in range(_GROUPS)]
    codes: UInt8 = split_nibbles(joined[:, :, :4]) | np.stack(high, axis=2)
    return codes


def join_sixes(tiled: UInt8) -> UInt8:
    """Pack 6-bit codes (tiles, blocks, 8, r, j) to bytes (tiles, blocks, 6, r, j).

    Three bytes hold four codes: the low bits of byte 3 h + i are the code of group 4 h + i,
    the high two of its three bytes are bits 2 i of the code of group 4 h + 3.
    """
    halves = tiled.reshape(*tiled.shape[:2], 2, 4, *tiled.shape[3:])
    pairs = [halves[:, :, :, 3] >> np.uint8(2 * i) & np.uint8(3) for i in range(3)]
    joined = [halves[:, :, :, i] | pairs[i] << np.uint8(6) for i in range(3)]
    return np.stack(joined, axis=3).reshape(*tiled.shape[:2], 6, *tiled.shape[3:])


def split_sixes(joined: UInt8) -> UInt8:
    """Undo `join_sixes`."""
    halves = joined.reshape(*joined.shape[:2], 2, 3, *joined.shape[3:])
    first, second, third = (halves[:, :, :, i] >> np.uint8(6) << np.uint8(2 * i) for i in range(3))
    fourth = (first | second | third)[:, :, :, None]
    codes = np.concatenate([halves & np.uint8(63), fourth], axis=3)
    return codes.reshape(*joined.shape[:2], _GROUPS, *joined.shape[3:])


def join_pairs(first: UInt8, second: UInt8, bits: int) -> UInt8:
    """Pack two numbers of 8 or 6 bits of each row (tiles, blocks, r): 32 or 24 bytes a block.

    Of 8 bits, all first ones and then all second ones. Of 6 bits, byte r is the first of row r
    and the low two bits of its second; 8 bytes follow, of the high four bits of the second
    ones: rows r and r + 8 share one.
    """
    if bits == 8:
        return np.concatenate([first, second], axis=2)
    high, half = second >> np.uint8(2), TILE_ROWS // 2
    shared = high[:, :, :half] | high[:, :, half:] << np.uint8(4)
    return np.concatenate([first | second << np.uint8(6), shared], axis=2)


def split_pairs(joined: UInt8, bits: int) -> tuple[UInt8, UInt8]:
    """Undo `join_pairs`: `joined` holds pairs of `bits`."""
    whole, rest = joined[:, :, :TILE_ROWS], joined[:, :, TILE_ROWS:]
    if bits == 8:
        return whole, rest
    high = np.concatenate([rest & np.uint8(15), rest >> np.uint8(4)], axis=2)
    return whole & np.uint8(63), whole >> np.uint8(6) | high << np.uint8(2)


def tile_per_block(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Reorder one value a block to lie row beside row.

    values : any dtype, (rows, blocks), gives the same dtype, (tiles, blocks, r).
    """
    rows, blocks = values.shape
    tiled: npt.NDArray[Any] = values.reshape(rows // TILE_ROWS, TILE_ROWS, blocks)
    return np.swapaxes(tiled, 1, 2)


def untile_per_block(tiled: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Undo `tile_per_block`.

    tiled : any dtype, (tiles, blocks, r), gives the same dtype, (rows, blocks).
    """
    tiles, blocks, _ = tiled.shape
    return np.swapaxes(tiled, 1, 2).reshape(tiles * TILE_ROWS, blocks)
