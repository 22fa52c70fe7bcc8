"""How much each column of a matrix matters, as the searches weight squared errors.

A column's importance is the mean square of what the model multiplies it with: an error e
of a weight costs the output e times that input. Owns the check, and the scaling that keeps
float32 sums exact enough.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qllama.errors import ConversionError
from qllama.quant.types import BLOCK

__all__ = ["LEAST_IMPORTANCE", "block_importance", "blocks_of_columns"]

#: Least importance beside the block's greatest: below it, the sums of a weighted fit lose
#: the difference between codes to rounding.
LEAST_IMPORTANCE = np.float32(2.0**-10)


def block_importance(importance: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    """Scale importance block by block, where only ratios count, and pad it.

    Parameters
    ----------
    importance : float32, (k,)
        Not negative; of any size.
    k : int
        Columns of the matrix.

    Returns
    -------
    float32, (k padded to blocks of 32,)
        In each block 1 at most, and at least `LEAST_IMPORTANCE`; 1 in blocks that are all 0.
        Padding counts least.

    Raises
    ------
    ConversionError
        When the shape or dtype is another, or a number is negative or not finite.
    """
    if importance.dtype != np.float32 or importance.shape != (k,):
        raise ConversionError(
            f"importance: expected float32 ({k},), a number for each column, "
            f"found {importance.dtype} {importance.shape}"
        )
    usable = (importance >= 0) & np.isfinite(importance)
    if not usable.all():
        column = int(np.argmin(usable))
        raise ConversionError(
            f"importance of column {column}: expected a finite number of at least 0, "
            f"found {importance[column]}"
        )
    blocks = np.pad(importance, (0, -k % BLOCK)).reshape(-1, BLOCK)
    greatest = blocks.max(axis=1, keepdims=True)
    is_known = greatest > 0
    relative = np.where(is_known, blocks / np.where(is_known, greatest, 1), np.float32(1))
    scaled: npt.NDArray[np.float32] = np.maximum(relative, LEAST_IMPORTANCE).reshape(-1)
    return scaled


def blocks_of_columns(h: npt.NDArray[np.float32], rows: int) -> npt.NDArray[np.float32]:
    """Repeat what holds for columns for the blocks of every row.

    Parameters
    ----------
    h : float32, (k,)
        k a multiple of 32.
    rows : int

    Returns
    -------
    float32, (32, rows * k / 32)
        A block a column, the blocks of a row one after another.
    """
    return np.tile(h.reshape(-1, BLOCK).T, (1, rows))
