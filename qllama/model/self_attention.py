"""Attention phases of the compiled forward pass: cache, scores, outputs.

Each function runs on every thread of a team at once; see `decoder`. Throughout:
`model`, `batch` and `layer` are the records of `records` (in `attend` `layer` is the
layer's number, elsewhere `layer_index`), `thread` is this thread's number.
"""

from __future__ import annotations

import numpy as np

from qllama.config import MAX_QUERY_HEADS_PER_KV_HEAD
from qllama.kernels import vector as v
from qllama.kernels._jit import njit
from qllama.kernels.activation import group_of
from qllama.kernels.attention import (
    CHUNK,
    append_key,
    append_value,
    attend_chunk,
    merge_partial,
    partial_bytes,
    reset_partial,
    write_output,
)
from qllama.kernels.norm import rms_norm
from qllama.kernels.rope import rope
from qllama.kernels.team import claim
from qllama.model.projections import pack_row
from qllama.quant.types import BLOCK

__all__ = ["QUERIES_PER_GROUP", "attend", "pack_attended", "rotate_and_append"]

_FLOAT = 4
#: Lanes (queries times heads that share a key/value head) handled together.
QUERIES_PER_GROUP = 12
_MAX_LANES = max(QUERIES_PER_GROUP, MAX_QUERY_HEADS_PER_KV_HEAD)


@njit
def rotate_and_append(model, batch, layer, layer_index, thread):
    """Norm (if any) and rotate q and k; put k and v into the cache."""
    head_bytes = _FLOAT * model.head_dim
    while True:
        t = claim(model.team, 1)
        if t >= batch.n_tokens:
            return
        position = v.load_int(batch.positions + 4 * t)
        cos = batch.cos + 2 * model.head_dim * t
        sin = batch.sin + 2 * model.head_dim * t
        row = model.qkv + _FLOAT * model.qkv_columns * t
        for head in range(model.n_heads):
            q = row + head_bytes * head
            _norm_head(model, q, layer.q_norm, thread)
            rope(q, cos, sin, model.head_dim)
        keys, values = _cache_of(model, batch, layer_index, t)
        for head in range(model.n_kv_heads):
            k = row + _FLOAT * model.k_column + head_bytes * head
            _norm_head(model, k, layer.k_norm, thread)
            rope(k, cos, sin, model.head_dim)
            offset = model.head_bytes * head
            append_key(keys + offset, position, k, model.head_dim, model.head_size)
            value = row + _FLOAT * model.v_column + head_bytes * head
            append_value(values + offset, position, value, model.head_dim, model.capacity)


@njit
def _norm_head(model, head, weight, thread):
    """Norm one head in place, through zero-padded scratch."""
    if weight == 0:
        return
    row = model.scratch + model.scratch_bytes * thread
    for i in range(model.head_size):
        inside = i < model.head_dim
        value = v.load_scalar(head + _FLOAT * i) if inside else np.float32(0.0)
        v.store_scalar(row + _FLOAT * i, value)
    rms_norm(row, weight, row, model.head_dim, model.head_size, model.eps)
    for i in range(model.head_dim):
        v.store_scalar(head + _FLOAT * i, v.load_scalar(row + _FLOAT * i))


@njit
def _cache_of(model, batch, layer, token):
    """Addresses of the keys and values of a token's slot in one layer."""
    offset = model.layer_bytes * layer + model.slot_bytes * v.load_int(batch.slots + 4 * token)
    return model.keys + offset, model.values + offset


@njit
def attend(model, batch, layer, thread):
    """Attention of every (group of queries, key/value head), split by chunk if asked."""
    n_chunks = max(batch.n_split_chunks, 1)
    first_seen = np.empty(_MAX_LANES, np.int64)
    end_seen = np.empty(_MAX_LANES, np.int64)
    while True:
        item = claim(model.team, 1)
        if item >= batch.n_groups * model.n_kv_heads * n_chunks:
            return
        pair, chunk = item // n_chunks, item % n_chunks
        group, head = pair // model.n_kv_heads, pair % model.n_kv_heads
        only = chunk if batch.n_split_chunks > 0 else -1
        _attend_group(model, batch, layer, group, head, only, first_seen, end_seen, thread)


@njit
def _attend_group(model, batch, layer, group, kv_head, only_chunk, first_seen, end_seen, thread):
    """One group's queries on one key/value head: all chunks, or one into `partials`."""
    repeats = model.n_heads // model.n_kv_heads
    first_token = v.load_int(batch.groups + 8 * group)
    n_queries = repeats * v.load_int(batch.groups + 8 * group + 4)
    size = partial_bytes(model.head_size)
    queries = model.scratch + model.scratch_bytes * thread
    scores = queries + _FLOAT * model.head_size * n_queries
    weights = scores + _FLOAT * CHUNK * n_queries
    partials = weights + _FLOAT * CHUNK * n_queries
    merged = partials + size * n_queries
    first_position, end_position = np.int64(2**62), 0
    for i in range(n_queries):
        token = first_token + i // repeats
        position = v.load_int(batch.positions + 4 * token)
        end_seen[i] = position + 1
        first_seen[i] = max(position + 1 - model.sliding_window, 0)
        first_position = min(first_position, first_seen[i])
        end_position = max(end_position, position + 1)
        head = kv_head * repeats + i % repeats
        q = model.qkv + _FLOAT * (model.qkv_columns * token + model.head_dim * head)
        _pack_query(model, q, queries, i, n_queries)
        reset_partial(merged + size * i, model.head_size)
    keys, values = _cache_of(model, batch, layer, first_token)
    for chunk in range(first_position // CHUNK, (end_position + CHUNK - 1) // CHUNK):
        if only_chunk >= 0 and chunk != only_chunk:
            continue
        attend_chunk(
            model.attention_kernel,
            queries,
            n_queries,
            first_seen,
            end_seen,
            keys + model.head_bytes * kv_head,
            values + model.head_bytes * kv_head,
            chunk * CHUNK,
            min((chunk + 1) * CHUNK, end_position),
            model.capacity,
            model.head_size,
            model.attention_scale,
            scores,
            weights,
            partials,
        )
        for i in range(n_queries):
            merge_partial(merged + size * i, partials + size * i, model.head_size)
    for i in range(n_queries):
        token, head = first_token + i // repeats, kv_head * repeats + i % repeats
        if only_chunk >= 0:
            place = (token * model.n_heads + head) * batch.n_split_chunks + only_chunk
            reset_partial(model.partials + size * place, model.head_size)
            merge_partial(model.partials + size * place, merged + size * i, model.head_size)
        else:
            out = model.attended + _FLOAT * (model.attention_padded * token + model.head_dim * head)
            write_output(merged + size * i, out, model.head_dim, model.head_size)


@njit
def _pack_query(model, q, queries, query, n_queries):
    """Pack one query as `attend_chunk` reads it, padded with zeros to head_size."""
    group, width = group_of(query, n_queries)
    lane = queries + _FLOAT * (model.head_size * group + query - group)
    for i in range(model.head_size):
        inside = i < model.head_dim
        value = v.load_scalar(q + _FLOAT * i) if inside else np.float32(0.0)
        v.store_scalar(lane + _FLOAT * width * i, value)


@njit
def pack_attended(model, batch, thread):
    """Merge split attention; pack the heads' outputs for o_proj."""
    size = partial_bytes(model.head_size)
    merged = model.scratch + model.scratch_bytes * thread
    while True:
        t = claim(model.team, 1)
        if t >= batch.n_tokens:
            return
        row = model.attended + _FLOAT * model.attention_padded * t
        if batch.n_split_chunks > 0:
            for head in range(model.n_heads):
                reset_partial(merged, model.head_size)
                place = (t * model.n_heads + head) * batch.n_split_chunks
                for chunk in range(batch.n_split_chunks):
                    partial = model.partials + size * (place + chunk)
                    merge_partial(merged, partial, model.head_size)
                out = row + _FLOAT * model.head_dim * head
                write_output(merged, out, model.head_dim, model.head_size)
        n_blocks = model.attention_padded // BLOCK
        pack_row(row, n_blocks, model.packed_q8, model.packed_f32, t, batch.n_tokens)
