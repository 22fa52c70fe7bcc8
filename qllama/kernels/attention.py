"""Causal grouped-query attention over a key/value cache.

`kv_layout` says how the cache lies. The positions are cut into chunks of `CHUNK`, at
multiples of it; each gives a partial result, and `partials` merges them in order. A
score is one chain of operations over the head's dimensions, an output one over the
chunk's positions, so a token's result is the same bits whichever thread computes which
chunk, and whatever other queries share the pass over it.

`head_size` is head_dim padded to a multiple of 32 throughout, `kv_type` a place in
`KV_TYPES`.
Definition: `reference.attention`.
"""

from __future__ import annotations

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import inlined, njit
from qllama.kernels.activation import group_of, pack_q8
from qllama.kernels.isa import current_isa
from qllama.kernels.kv_layout import (
    CHUNK,
    F16,
    Q8,
    chunk_bytes,
    key_panel_bytes,
    value_panel_bytes,
)
from qllama.kernels.linear import call_linear
from qllama.kernels.panel import F16_PANEL, I8_PANEL, PANEL, ROW_BYTES, ROW_FLOATS, multiply_panel
from qllama.kernels.partials import merge_partial, partial_bytes
from qllama.kernels.weight_kernels import Q8_BYTES
from qllama.quant.types import BLOCK, TILE_ROWS

__all__ = [
    "attend_chunk",
    "chunk_scratch_bytes",
    "pack_query",
    "query_bytes",
]

_FLOAT = 4
_HALF = 2
#: Queries that share a pass over the keys and one over the values.
_GROUP = current_isa().vector_widths[0]


@inlined
def query_bytes(head_size):
    """Bytes of a packed query, of either cache type."""
    segments = (head_size + ROW_FLOATS - 1) // ROW_FLOATS
    return ROW_BYTES * segments + Q8_BYTES * (head_size // BLOCK)


@inlined
def chunk_scratch_bytes(head_size):
    """Bytes of scratch that `attend_chunk` needs."""
    return _GROUP * (ROW_BYTES + partial_bytes(head_size)) + _FLOAT * CHUNK


@njit
def pack_query(kv_type, q, scale, queries, query, n_queries, head_dim, head_size):
    """Pack one query for `attend_chunk`.

    Parameters
    ----------
    kv_type : int64
    q : int64
        Address of float32, (head_dim,).
    scale : float32
        Multiplies the scores.
    queries : int64
        Address of `n_queries` packed queries.
    query, n_queries : int64
        Its place among those that share the passes.
    head_dim, head_size : int64
    """
    factor = v.splat(scale)
    for start in range(0, head_size, ROW_FLOATS):
        row = queries + ROW_BYTES * (start // ROW_FLOATS * n_queries + query)
        size = min(head_size - start, ROW_FLOATS)
        inside = max(min(head_dim - start, size), 0)
        whole = inside // v.LANES * v.LANES
        for i in range(0, whole, v.LANES):
            v.store(row + _FLOAT * i, v.load(q + _FLOAT * (start + i)) * factor)
        for i in range(whole, inside):
            value = v.load_scalar(q + _FLOAT * (start + i)) * scale
            v.store_scalar(row + _FLOAT * i, value)
        for i in range(inside, size):
            v.store_scalar(row + _FLOAT * i, np.float32(0.0))
        if kv_type == Q8:
            _pack_codes(row, size, start, queries, query, n_queries, head_size)


@njit
def _pack_codes(row, size, start, queries, query, n_queries, head_size):
    """Quantize columns `start` .. `start + size - 1` of a query, for the `q8_0` kernel."""
    n_blocks = head_size // BLOCK
    first = query // _GROUP * _GROUP
    group, width = group_of(query - first, min(_GROUP, n_queries - first))
    segments = (head_size + ROW_FLOATS - 1) // ROW_FLOATS
    packed = queries + n_queries * ROW_BYTES * segments
    packed += Q8_BYTES * (n_blocks * (first + group) + width * (start // BLOCK))
    pack_q8(row, size // BLOCK, packed, width, query - first - group)


@njit
def attend_chunk(
    kv_type,
    key_kernel,
    queries,
    n_queries,
    seen,
    keys,
    values,
    chunk,
    head_size,
    merged,
    merged_stride,
    scratch,
):
    """Merge the positions of one chunk into the partials of `n_queries` queries.

    Parameters
    ----------
    kv_type : int64
    key_kernel : int64
        Address of the `q8_0` kernel; not read for `f16`.
    queries : int64
        Address of what `pack_query` packed.
    n_queries : int64
    seen : int64
        Address of int32 pairs: query i sees the positions from its first up to, not
        with, its second.
    keys, values : int64
        Addresses of the head's cache.
    chunk, head_size : int64
    merged, merged_stride : int64
        Address of the first query's partial, and bytes from one query's to the next.
    scratch : int64
        Address of `chunk_scratch_bytes`.
    """
    offset = chunk * chunk_bytes(kv_type, head_size)
    for first in range(0, n_queries, _GROUP):
        count = min(_GROUP, n_queries - first)
        # What the group sees of the chunk.
        start, end = np.int64(CHUNK), np.int64(0)
        for query in range(first, first + count):
            start = min(start, v.load_int(seen + 8 * query) - chunk * CHUNK)
            end = max(end, v.load_int(seen + 8 * query + 4) - chunk * CHUNK)
        start = max(start, 0) // PANEL * PANEL
        end = min(end, CHUNK)
        if start >= end:
            continue
        scores = scratch
        partials = scores + ROW_BYTES * _GROUP
        scales = partials + partial_bytes(head_size) * _GROUP
        _score(
            kv_type,
            key_kernel,
            queries,
            first,
            count,
            n_queries,
            keys + offset,
            start,
            end,
            head_size,
            scores,
        )
        size = partial_bytes(head_size)
        for i in range(count):
            query = first + i
            _softmax(
                scores + ROW_BYTES * i,
                start,
                (end + v.LANES - 1) // v.LANES * v.LANES,
                v.load_int(seen + 8 * query) - chunk * CHUNK,
                v.load_int(seen + 8 * query + 4) - chunk * CHUNK,
                partials + size * i + _FLOAT * head_size,
            )
        _weigh(kv_type, scores, count, values + offset, start, end, head_size, partials, scales)
        for i in range(count):
            target = merged + merged_stride * (first + i)
            merge_partial(target, partials + size * i, head_size)


@njit
def _score(
    kv_type,
    key_kernel,
    queries,
    first,
    count,
    n_queries,
    keys,
    start,
    end,
    head_size,
    scores,
):
    """Scores of one group's queries with positions `start` .. `end` - 1 of a chunk."""
    n_blocks = head_size // BLOCK
    segments = (head_size + ROW_FLOATS - 1) // ROW_FLOATS
    panel_bytes = key_panel_bytes(kv_type, head_size)
    for position in range(start, end, PANEL):
        panel = keys + position // PANEL * panel_bytes
        out = scores + _FLOAT * position
        if kv_type == F16:
            for segment in range(segments):
                rows = queries + ROW_BYTES * (segment * n_queries + first)
                columns = min(head_size - segment * ROW_FLOATS, ROW_FLOATS)
                part = panel + _HALF * PANEL * ROW_FLOATS * segment
                multiply_panel(F16_PANEL, count, rows, part, 0, out, columns, ROW_BYTES, segment)
        else:
            packed = queries + n_queries * ROW_BYTES * segments + Q8_BYTES * n_blocks * first
            for line in range(0, panel_bytes, 64):
                v.prefetch(panel + panel_bytes + line)
            for half in range(PANEL // TILE_ROWS):
                tile = panel + panel_bytes // 2 * half
                target = out + _FLOAT * TILE_ROWS * half
                # No scratch: only groups for matrix instructions write it, and those are
                # wider than this group (a test of `ISAS` holds it).
                call_linear(key_kernel, (tile, packed, target, n_blocks, count, ROW_BYTES, 0, 0))


@njit
def _softmax(scores, start, end, first, stop, summary):
    """Turn scores `start` .. `end` - 1 into exp(score - maximum), 0 outside first .. stop - 1.

    `start` and `end` are multiples of 16. Writes the maximum and the sum of the weights
    to address `summary`; a chunk that is not seen at all has sum 0.
    """
    lowest = v.splat(np.float32(-np.inf))
    zero = v.splat(np.float32(0.0))
    low = max(start, first // v.LANES * v.LANES)
    high = min(end, (stop + v.LANES - 1) // v.LANES * v.LANES)
    if low >= high:
        low = high = end
    for i in range(start, low, v.LANES):
        v.store(scores + _FLOAT * i, zero)
    for i in range(max(high, start), end, v.LANES):
        v.store(scores + _FLOAT * i, zero)
    # Only the two vectors at the edges can be seen in part; exp makes -inf a weight of 0.
    for i in (low, high - v.LANES):
        if low < high and (first > i or stop < i + v.LANES):
            score = v.load(scores + _FLOAT * i)
            v.store(scores + _FLOAT * i, v.keep_lanes(score, first - i, stop - i, lowest))
    # A NaN is passed over here and shows in its weight.
    largest = lowest
    for i in range(low, high, v.LANES):
        largest = v.larger(v.load(scores + _FLOAT * i), largest)
    maximum = v.reduce_max(largest)
    shift = v.splat(maximum)
    total = zero
    for i in range(low, high, v.LANES):
        weight = v.exp(v.load(scores + _FLOAT * i) - shift)
        total = total + weight
        v.store(scores + _FLOAT * i, weight)
    v.store_scalar(summary, maximum)
    v.store_scalar(summary + _FLOAT, v.reduce_add(total))


@njit
def _weigh(kv_type, weights, count, values, start, end, head_size, partials, scales):
    """partials[query] = sum of weight * value over positions `start` .. `end` - 1."""
    size = partial_bytes(head_size)
    rows = weights + _FLOAT * start
    for i in range(0, head_size, PANEL):
        panel = values + i // PANEL * value_panel_bytes(kv_type)
        out = partials + _FLOAT * i
        if kv_type == F16:
            panel += _HALF * PANEL * start
            multiply_panel(F16_PANEL, count, rows, panel, 0, out, end - start, size, 0)
        else:
            halves = panel + CHUNK * BLOCK
            for p in range(start, end, v.LANES):
                v.store(scales + _FLOAT * p, v.load_f16(halves + _HALF * p))
            codes, first_scale = panel + BLOCK * start, scales + _FLOAT * start
            multiply_panel(I8_PANEL, count, rows, codes, first_scale, out, end - start, size, 0)
