"""Plain numpy definitions of what every kernel computes.

The oracle of the kernel tests and the place to read the maths. Written for
clarity in float32 (products of codes in integers); never used to run a model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "attention",
    "dequantize_activations",
    "kv_rounded",
    "linear",
    "quantize_activations",
    "rms_norm",
    "rope",
    "softmax",
    "swiglu",
]

F32 = npt.NDArray[np.float32]
_BLOCK = 32


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """Root mean square norm: `weight * x / sqrt(mean(x**2) + eps)`.

    Parameters
    ----------
    x : float32, (..., n)
    weight : float32, (n,)
    eps : float

    Returns
    -------
    float32, (..., n)

    References
    ----------
    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
    """
    mean = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
    result: F32 = (weight * (x / np.sqrt(mean + eps))).astype(np.float32)
    return result


def quantize_activations(x: F32) -> tuple[npt.NDArray[np.int8], F32]:
    """Quantize to int8 in blocks of 32: scale = absmax / 127; below 2**-100 codes are 0.

    Parameters
    ----------
    x : float32, (n_tokens, k), k a multiple of 32

    Returns
    -------
    codes : int8, (n_tokens, k)
    scales : float32, (n_tokens, k / 32)
    """
    blocks = x.reshape(len(x), -1, _BLOCK)
    absmax = np.abs(blocks).max(-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(absmax < 2.0**-100, np.float32(0), np.float32(127) / absmax)
    codes = np.rint(blocks * inverse[..., None]).astype(np.int8)
    return codes.reshape(x.shape), absmax / np.float32(127)


def dequantize_activations(codes: npt.NDArray[np.int8], scales: F32) -> F32:
    """What quantized activations stand for.

    Parameters
    ----------
    codes : int8, (n_tokens, k)
    scales : float32, (n_tokens, k / 32)

    Returns
    -------
    float32, (n_tokens, k)
    """
    return codes.astype(np.float32) * np.repeat(scales, _BLOCK, axis=-1)


def kv_rounded(x: F32, kv_type: str) -> F32:
    """Keys or values as the cache holds them.

    Parameters
    ----------
    x : float32, (..., n), n a multiple of 32 for `q8`
    kv_type : str
        `f16`: the nearest finite half; `q8`: scale * code in blocks of 32, with the
        codes of `quantize_activations` and its scale rounded to a half.

    Returns
    -------
    float32, (..., n)
    """
    largest = np.float32(65504)
    if kv_type == "f16":
        return np.clip(x, -largest, largest).astype(np.float16).astype(np.float32)
    codes, scales = quantize_activations(x.reshape(-1, x.shape[-1]))
    halves = np.minimum(scales, largest).astype(np.float16).astype(np.float32)
    return dequantize_activations(codes, halves).reshape(x.shape)


def linear(x: F32, weight: F32, bias: F32 | None = None) -> F32:
    """`x @ weight.T + bias`, summed in float64.

    Parameters
    ----------
    x : float32, (n_tokens, k)
    weight : float32, (rows, k)
    bias : float32, (rows,), optional

    Returns
    -------
    float32, (n_tokens, rows)
    """
    y = x.astype(np.float64) @ weight.astype(np.float64).T
    result: F32 = (y if bias is None else y + bias).astype(np.float32)
    return result


def rope(x: F32, cos: F32, sin: F32) -> F32:
    """Rotary embedding, halves of a head paired: (x[i], x[i + d/2]) turn by angle i.

    Parameters
    ----------
    x : float32, (n_tokens, n_heads, head_dim)
    cos, sin : float32, (n_tokens, head_dim / 2)

    Returns
    -------
    float32, (n_tokens, n_heads, head_dim)

    References
    ----------
    Su et al. 2021, "RoFormer", eq. 34, in the pairing of GPT-NeoX and Hugging Face.
    """
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def softmax(scores: F32) -> F32:
    """Softmax over the last axis; -inf scores get weight 0."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    result: F32 = e / e.sum(-1, keepdims=True)
    return result


def attention(
    q: F32, k: F32, v: F32, positions: npt.NDArray[np.integer], window: int | None = None
) -> F32:
    """Causal grouped-query attention of one sequence.

    Parameters
    ----------
    q : float32, (n_tokens, n_heads, head_dim)
        Queries at `positions`.
    k, v : float32, (n_positions, n_kv_heads, head_dim)
        Keys and values at positions 0 .. n_positions - 1; query head h reads head
        `h * n_kv_heads // n_heads`.
    positions : int, (n_tokens,)
    window : int, optional
        A query at p sees p - window + 1 .. p only.

    Returns
    -------
    float32, (n_tokens, n_heads, head_dim)

    References
    ----------
    Vaswani et al. 2017, eq. 1; Ainslie et al. 2023, "GQA".
    """
    repeats = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, repeats, axis=1) for x in (k, v))
    scores = np.einsum("thd,phd->htp", q, k) / np.float32(np.sqrt(q.shape[-1]))
    seen = np.arange(len(k))[None] <= positions[:, None]
    if window is not None:
        seen &= np.arange(len(k))[None] > positions[:, None] - window
    scores = np.where(seen[None], scores, np.float32(-np.inf))
    result: F32 = np.einsum("htp,phd->thd", softmax(scores.astype(np.float32)), v)
    return result


def swiglu(gate: F32, up: F32) -> F32:
    """`silu(gate) * up`; Shazeer 2020, "GLU Variants Improve Transformer", eq. 6."""
    result: F32 = gate / (1 + np.exp(-gate)) * up
    return result
