"""The best float16 scale of blocks whose weights are scale * code, by search.

Sixteen starts say at which code, before rounding, a block's weight of largest magnitude
lands; each gives codes, the codes their least-squares scale, that scale rounded to float16
the final codes. The start of least weighted squared error is kept. Choosing among scales
pays even without weights, because a percent more or less rounds most of 32 codes anew. One
start is ggml's, so that no block comes out worse than ggml rounds it.

Compiled code repeats these operations one by one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qllama.quant.block_sum import sum_block

__all__ = ["LARGEST_HALF", "search_scale"]

Float32 = npt.NDArray[np.float32]

LARGEST_HALF = np.float32(np.finfo(np.float16).max)
_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal


def _codes(x: Float32, scale: Float32, least: float, greatest: float) -> Float32:
    """Nearest codes, whole float32 (32, n); 0 where the scale is too small to divide by."""
    usable = np.abs(scale) >= _SMALLEST_NORMAL
    inverse = np.where(usable, np.float32(1) / np.where(usable, scale, 1), np.float32(0))
    codes: Float32 = np.clip(np.rint(x * inverse), np.float32(least), np.float32(greatest))
    return codes


def search_scale(
    x: Float32, h: Float32, starts: Float32, least: float, greatest: float
) -> tuple[Float32, Float32]:
    """Find codes and scales of blocks.

    Parameters
    ----------
    x : float32, (32, n)
        A block a column.
    h : float32, (32, n)
        Weights of squared errors, as `block_importance` gives them.
    starts : float32, (n,)
        Codes of the weight of largest magnitude.
    least, greatest : float
        Range of the codes.

    Returns
    -------
    codes : float32, (32, n)
        Whole numbers.
    scales : float32, (n,)
        Values of float16.
    """
    place = np.abs(x).argmax(axis=0)
    largest = np.take_along_axis(x, place[None], axis=0)[0]
    best_scale, best_error = np.zeros_like(largest), np.full_like(largest, np.inf)
    for start in starts:
        scale = largest / start
        codes = _codes(x, scale, least, greatest)
        weighted = h * codes
        sum_xq, sum_qq = sum_block(weighted * x), sum_block(weighted * codes)
        solvable = sum_qq > 0
        scale = np.where(solvable, sum_xq / np.where(solvable, sum_qq, np.float32(1)), scale)
        scale = np.clip(scale, -LARGEST_HALF, LARGEST_HALF)
        scale = scale.astype(np.float16).astype(np.float32)
        difference = scale * _codes(x, scale, least, greatest) - x
        error = sum_block(h * (difference * difference))
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
    return _codes(x, best_scale, least, greatest), best_scale
