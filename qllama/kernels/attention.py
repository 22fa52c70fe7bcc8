"""Causal grouped-query attention over a half-precision key/value cache.

One key/value head of one sequence is stored in tiles, so that both products are
the `f16` kernel of `linear`: keys as [position / 16][head_dim][16 positions],
values as [head_dim / 16][position][16 dims]. head_dim is padded to a multiple of
32 with zeros.

The positions are cut into chunks of `CHUNK`, at multiples of it. A chunk's result
(a partial) is its output, maximum score and sum of weights; partials are merged
in order of position. A token's result is therefore the same bits whichever
thread computes which chunk, and whatever other tokens are in the batch.
`head_size` is head_dim padded to a multiple of 32 throughout.
Definition: `reference.attention`; merging follows Dao 2023, "FlashAttention-2", eq. 2-4.
"""

from __future__ import annotations

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import njit
from qllama.kernels.activation import group_of
from qllama.kernels.linear import call_linear
from qllama.quant.types import BLOCK, TILE_ROWS

__all__ = [
    "CHUNK",
    "append_key",
    "append_value",
    "attend_chunk",
    "merge_partial",
    "partial_bytes",
    "reset_partial",
    "write_output",
]

#: Positions whose scores are computed together.
CHUNK = 256
_HALF = 2
_FLOAT = 4
_TILE_COLUMN = _HALF * TILE_ROWS


@njit
def partial_bytes(head_size):
    """Bytes of a partial: float32 output (head_size,), then maximum and sum of weights."""
    return _FLOAT * (head_size + TILE_ROWS)


@njit
def append_key(keys, position, key, head_dim, head_size):
    """Store one head's float32 key (address `key`) at `position` of the head at `keys`.

    `head_size` is head_dim padded to a multiple of 32.
    """
    tile = keys + position // TILE_ROWS * head_size * _TILE_COLUMN
    lane = tile + position % TILE_ROWS * _HALF
    for i in range(head_dim):
        v.store_f16(lane + i * _TILE_COLUMN, v.load_scalar(key + _FLOAT * i))


@njit
def append_value(values, position, value, head_dim, capacity):
    """Store one head's float32 value (address `value`) at `position` of the head at `values`.

    `capacity` is the number of positions the cache has room for.
    """
    row = values + position * _TILE_COLUMN
    for i in range(head_dim):
        tile = row + i // TILE_ROWS * capacity * _TILE_COLUMN
        v.store_f16(tile + i % TILE_ROWS * _HALF, v.load_scalar(value + _FLOAT * i))


@njit
def attend_chunk(
    kernel,
    queries,
    n_queries,
    first_seen,
    end_seen,
    keys,
    values,
    start,
    end,
    capacity,
    head_size,
    scale,
    scores,
    weights,
    partials,
):
    """Write the partials of `n_queries` queries over positions `start` .. `end` - 1.

    Parameters
    ----------
    kernel : int64
        Address of the `f16` kernel.
    queries : int64
        Address of the queries, packed as `activation.pack_f32` packs tokens of
        `head_size` values.
    n_queries : int64
    first_seen, end_seen : int64 arrays, (n_queries,)
        Query i sees positions first_seen[i] .. end_seen[i] - 1.
    keys, values : int64
        Addresses of the head's cache.
    start, end : int64
        `start` a multiple of CHUNK, `end` at most `start + CHUNK`.
    capacity, head_size : int64
        Of the cache.
    scale : float32
        Multiplies the scores.
    scores, weights : int64
        Addresses of scratch of n_queries * CHUNK float32 each.
    partials : int64
        Address of n_queries partials.
    """
    stride = _FLOAT * CHUNK
    tile_bytes = head_size * _TILE_COLUMN
    for tile in range((end - start + TILE_ROWS - 1) // TILE_ROWS):
        address = keys + (start // TILE_ROWS + tile) * tile_bytes
        out = scores + _FLOAT * TILE_ROWS * tile
        call_linear(kernel, (address, queries, out, head_size // BLOCK, n_queries, stride, 0))
    n_blocks = (end - start + BLOCK - 1) // BLOCK
    size = partial_bytes(head_size)
    for query in range(n_queries):
        first = max(first_seen[query] - start, 0)
        stop = min(end_seen[query], end) - start
        summary = partials + size * query + _FLOAT * head_size
        _softmax(scores + stride * query, n_blocks * BLOCK, first, stop, scale, summary)
        group, width = group_of(query, n_queries)
        lane = weights + _FLOAT * (n_blocks * BLOCK * group + query - group)
        for i in range(n_blocks * BLOCK):
            weight = v.load_scalar(scores + stride * query + _FLOAT * i)
            v.store_scalar(lane + _FLOAT * width * i, weight)
    for tile in range(head_size // TILE_ROWS):
        address = values + (tile * capacity + start) * _TILE_COLUMN
        out = partials + _FLOAT * TILE_ROWS * tile
        call_linear(kernel, (address, weights, out, n_blocks, n_queries, size, 0))


@njit
def _softmax(scores, n, first, stop, scale, summary):
    """Turn scores into exp(score - maximum), 0 outside first .. stop - 1.

    Writes the maximum and the sum of the weights to address `summary`; a chunk
    that is not seen at all has sum 0.
    """
    lowest = v.splat(np.float32(-np.inf))
    zero = v.splat(np.float32(0.0))
    factor = v.splat(scale)
    largest = lowest
    for i in range(0, n, v.LANES):
        score = v.load(scores + _FLOAT * i) * factor
        largest = v.maximum(largest, v.keep_lanes(score, first - i, stop - i, lowest))
    maximum = v.reduce_max(largest)
    shift = v.splat(maximum)
    total = zero
    for i in range(0, n, v.LANES):
        weight = v.exp(v.load(scores + _FLOAT * i) * factor - shift)
        weight = v.keep_lanes(weight, first - i, stop - i, zero)
        total = total + weight
        v.store(scores + _FLOAT * i, weight)
    v.store_scalar(summary, maximum)
    v.store_scalar(summary + _FLOAT, v.reduce_add(total))


@njit
def reset_partial(partial, head_size):
    """Make the partial at this address that of no positions."""
    v.store_scalar(partial + _FLOAT * (head_size + 1), np.float32(0.0))


@njit
def merge_partial(merged, partial, head_size):
    """Merge the partial of the next positions into that of all before, by address."""
    summary, other = merged + _FLOAT * head_size, partial + _FLOAT * head_size
    total = v.load_scalar(summary + _FLOAT)
    other_total = v.load_scalar(other + _FLOAT)
    if other_total == 0:
        return
    if total == 0:
        for i in range(0, partial_bytes(head_size), 64):
            v.store(merged + i, v.load(partial + i))
        return
    maximum, other_maximum = v.load_scalar(summary), v.load_scalar(other)
    largest = max(maximum, other_maximum)
    keep = v.exp(v.splat(maximum - largest))
    add = v.exp(v.splat(other_maximum - largest))
    for i in range(0, _FLOAT * head_size, 64):
        v.store(merged + i, v.load(merged + i) * keep + v.load(partial + i) * add)
    v.store_scalar(summary, largest)
    rescaled = v.splat(total) * keep + v.splat(other_total) * add
    v.store_scalar(summary + _FLOAT, v.reduce_max(rescaled))


@njit
def write_output(partial, out, head_dim, head_size):
    """Write the attention output of a merged partial: float32, (head_dim,), to `out`."""
    factor = np.float32(1.0) / v.load_scalar(partial + _FLOAT * (head_size + 1))
    for i in range(head_dim):
        v.store_scalar(out + _FLOAT * i, v.load_scalar(partial + _FLOAT * i) * factor)
