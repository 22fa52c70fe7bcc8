"""Codes that make up for each other's errors: error feedback over columns.

A code next to the nearest costs its own weight more, but where inputs go together it can
undo what rounding other weights did to the output. Column by column, the error of each
code is spread over the columns to come as the least-squares solution for the inputs'
second moments H says; the scales stay as they were found.

Reference: Frantar et al. 2022, "GPTQ", section 3; Hassibi & Stork 1993, "Optimal Brain
Surgeon".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qllama.quant.codec import BlockCodec
from qllama.quant.registry import codec
from qllama.quant.types import BLOCK

__all__ = ["feedback_factor", "with_feedback"]

Float32 = npt.NDArray[np.float32]
# Columns whose errors are spread over the others in one product.
_PANEL = 64
# In parts of the mean of H's diagonal: what the text cannot tell, and what few tokens feign.
_DAMPING, _DAMPING_OF_FEW = 0.05, 0.2


def feedback_factor(moments: Float32, n_tokens: int) -> Float32:
    """Factor the inverse of damped second moments of a matrix's inputs.

    Parameters
    ----------
    moments : float32, (k, k)
        Sums over tokens of products of two inputs; overwritten.
    n_tokens : int
        How many tokens.

    Returns
    -------
    float32, (k, k)
        Upper triangular U with transposed(U) U = inverse(H + damping), up to a factor.
    """
    k = len(moments)
    mean = float(np.diag(moments).mean()) or 1.0
    moments /= np.float32(mean)
    moments[np.diag_indices(k)] += np.float32(_DAMPING + _DAMPING_OF_FEW * k / n_tokens)
    # H = R transposed(R) with R upper triangular: the Cholesky factor from the other end.
    reversed_factor = np.linalg.cholesky(moments[::-1, ::-1])
    return _inverse_of_upper(np.ascontiguousarray(reversed_factor[::-1, ::-1]))


def _inverse_of_upper(r: Float32) -> Float32:
    n = len(r)
    if n <= _PANEL:
        return np.asarray(np.triu(np.linalg.inv(r)), np.float32)
    half = n // 2
    out = np.zeros_like(r)
    out[:half, :half] = _inverse_of_upper(r[:half, :half])
    out[half:, half:] = _inverse_of_upper(r[half:, half:])
    out[:half, half:] = -out[:half, :half] @ (r[:half, half:] @ out[half:, half:])
    return out


def with_feedback(
    type_name: str, w: Float32, data: npt.NDArray[np.uint8], factor: Float32
) -> npt.NDArray[np.uint8]:
    """Choose the codes of a quantized matrix anew.

    Parameters
    ----------
    type_name : str
        One whose blocks have codes.
    w : float32, (rows, k)
        The weights; rows do not depend on each other.
    data : uint8, (matrix_n_bytes(type_name, rows, k),)
        How they are stored; its scales stay.
    factor : float32, (k, k)
        Of `feedback_factor`.

    Returns
    -------
    uint8, (matrix_n_bytes(type_name, rows, k),)
    """
    found = codec(type_name)
    assert isinstance(found, BlockCodec)
    rows, k = w.shape
    grid = found.grid(data, rows, k)
    usable = np.abs(grid.scales) >= np.finfo(np.float32).smallest_normal
    inverses = np.where(usable, 1 / np.where(usable, grid.scales, 1), 0).astype(np.float32)
    wanted = w.T.copy()
    codes = np.empty((k, rows), np.uint8)
    errors = np.empty((_PANEL, rows), np.float32)
    for first in range(0, k, _PANEL):
        stop = min(first + _PANEL, k)
        for column in range(first, stop):
            scale, offset = grid.scales[column // BLOCK], grid.offsets[column // BLOCK]
            code = np.rint((wanted[column] + offset) * inverses[column // BLOCK])
            np.clip(code, 0, grid.greatest, out=code)
            codes[column] = code
            error = (wanted[column] - (scale * code - offset)) / factor[column, column]
            errors[column - first] = error
            wanted[column + 1 : stop] -= factor[column, column + 1 : stop, None] * error
        wanted[stop:] -= factor[first:stop, stop:].T @ errors[: stop - first]
    return found.with_codes(data, np.ascontiguousarray(codes.T))
