"""Attention phases of the compiled forward pass: cache, scores, outputs.

Each function runs on every thread of a team at once; see `decoder`. Throughout:
`model`, `batch` and `layer` are the records of `records` (in `attend` `layer` is the
layer's number, elsewhere `layer_index`), `thread` is this thread's number.
"""

from __future__ import annotations

import numpy as np

from qllama.kernels import atomic
from qllama.kernels import vector as v
from qllama.kernels._jit import inlined, njit
from qllama.kernels.attention import (
    attend_chunk,
    chunk_scratch_bytes,
    pack_query,
    query_bytes,
)
from qllama.kernels.kv_layout import CHUNK, append_key, append_value
from qllama.kernels.norm import rms_norm
from qllama.kernels.partials import merge_partial, partial_bytes, reset_partial, write_output
from qllama.kernels.rope import rope
from qllama.kernels.team import claim
from qllama.model.attention_plan import TASK

__all__ = ["append", "attend", "attention_scratch_bytes", "rotate", "rotate_and_append"]

_FLOAT = 4
_TASK_BYTES = 4 * len(TASK)
_FIRST_TOKEN, _N_TOKENS, _CHUNK, _FIRST_CHUNK, _N_CHUNKS, _PARTIAL, _ARRIVALS = range(
    0, _TASK_BYTES, 4
)


@inlined
def attention_scratch_bytes(n_queries, head_size):
    """Bytes of scratch a thread needs for tasks of `n_queries` queries of `head_size` values."""
    seen = (8 * n_queries + 63) // 64 * 64
    one = query_bytes(head_size) + partial_bytes(head_size)
    return seen + one * n_queries + chunk_scratch_bytes(head_size)


@njit
def rotate_and_append(model, batch, layer, layer_index, thread):
    """Norm (if any) and rotate q and k; put k and v into the cache."""
    scratch = model.scratch + model.scratch_bytes * thread
    first, end = _claim_heads(model, batch)
    while first < end:
        for item in range(first, end):
            t, kv_head = item // model.n_kv_heads, item % model.n_kv_heads
            _rotate_queries(model, batch, layer, t, kv_head, scratch)
            _rotated_key(model, batch, layer, t, kv_head, scratch)
            _append_key(model, batch, layer_index, t, kv_head, scratch)
            _append_value(model, batch, layer_index, t, kv_head, scratch)
        first, end = _claim_heads(model, batch)


@njit
def rotate(model, batch, layer, thread):
    """Norm (if any) and rotate q and k where they are: the first half of `rotate_and_append`."""
    scratch = model.scratch + model.scratch_bytes * thread
    first, end = _claim_heads(model, batch)
    while first < end:
        for item in range(first, end):
            t, kv_head = item // model.n_kv_heads, item % model.n_kv_heads
            _rotate_queries(model, batch, layer, t, kv_head, scratch)
            _rotated_key(model, batch, layer, t, kv_head, scratch)
            _store_head(model, scratch, _head_of(model, t, model.k_column, kv_head))
        first, end = _claim_heads(model, batch)


@njit
def append(model, batch, layer_index, thread):
    """Put k and v into the cache as they are: the second half of `rotate_and_append`."""
    scratch = model.scratch + model.scratch_bytes * thread
    first, end = _claim_heads(model, batch)
    while first < end:
        for item in range(first, end):
            t, kv_head = item // model.n_kv_heads, item % model.n_kv_heads
            _load_head(model, _head_of(model, t, model.k_column, kv_head), scratch)
            _append_key(model, batch, layer_index, t, kv_head, scratch)
            _append_value(model, batch, layer_index, t, kv_head, scratch)
        first, end = _claim_heads(model, batch)


@njit
def _claim_heads(model, batch):
    """(first, end) of the next key/value heads of tokens, token after token; equal: none."""
    n_items = batch.n_tokens * model.n_kv_heads
    count = max(1, n_items // (8 * model.n_threads))
    first = min(claim(model.team, count), n_items)
    return first, min(first + count, n_items)


@njit
def _head_of(model, t, column, head):
    """Address of a head of token `t` in the q, k, v buffer; `column` is where its kind starts."""
    return model.qkv + _FLOAT * (model.qkv_columns * t + column + model.head_dim * head)


@njit
def _rotate_queries(model, batch, layer, t, kv_head, scratch):
    """Norm (if any) and rotate the queries that read a key/value head."""
    repeats = model.n_heads // model.n_kv_heads
    cos, sin = batch.cos + 2 * model.head_dim * t, batch.sin + 2 * model.head_dim * t
    for head in range(kv_head * repeats, (kv_head + 1) * repeats):
        q = _head_of(model, t, 0, head)
        if layer.q_norm != 0:
            _load_head(model, q, scratch)
            rms_norm(scratch, layer.q_norm, scratch, model.head_dim, model.head_size, model.eps)
            _store_head(model, scratch, q)
        rope(q, cos, sin, model.head_dim)


@njit
def _rotated_key(model, batch, layer, t, kv_head, scratch):
    """Leave a key, normed (if the model does) and rotated, in `scratch`."""
    _load_head(model, _head_of(model, t, model.k_column, kv_head), scratch)
    if layer.k_norm != 0:
        rms_norm(scratch, layer.k_norm, scratch, model.head_dim, model.head_size, model.eps)
    cos, sin = batch.cos + 2 * model.head_dim * t, batch.sin + 2 * model.head_dim * t
    rope(scratch, cos, sin, model.head_dim)


@njit
def _append_key(model, batch, layer, t, kv_head, key):
    """Put a key (head_size,) into the cache."""
    keys, _ = _cache_of(model, batch, layer, t, kv_head)
    position = v.load_int(batch.positions + 4 * t)
    append_key(model.kv_type, keys, position, key, model.head_size)


@njit
def _append_value(model, batch, layer, t, kv_head, scratch):
    """Put a value of the q, k, v buffer into the cache."""
    _, values = _cache_of(model, batch, layer, t, kv_head)
    position = v.load_int(batch.positions + 4 * t)
    _load_head(model, _head_of(model, t, model.v_column, kv_head), scratch)
    append_value(model.kv_type, values, position, scratch, model.head_size)


@njit
def _load_head(model, head, out):
    """Copy a float32 head (head_dim,) to `out`, padded with zeros to head_size."""
    whole = model.head_dim // v.LANES * v.LANES
    for i in range(0, _FLOAT * whole, 64):
        v.store(out + i, v.load(head + i))
    for i in range(whole, model.head_size):
        value = v.load_scalar(head + _FLOAT * i) if i < model.head_dim else np.float32(0.0)
        v.store_scalar(out + _FLOAT * i, value)


@njit
def _store_head(model, head, out):
    """Copy the head_dim values of a head to `out`."""
    for i in range(model.head_dim):
        v.store_scalar(out + _FLOAT * i, v.load_scalar(head + _FLOAT * i))


@njit
def _cache_of(model, batch, layer, token, kv_head):
    """Addresses of the keys and values of a head of a token's slot in one layer."""
    slot = v.load_int(batch.slots + 4 * token)
    offset = model.layer_bytes * layer + model.slot_bytes * slot + model.head_bytes * kv_head
    return model.keys + offset, model.values + offset


@njit
def attend(model, batch, layer, thread):
    """Attention of every task of the batch on every key/value head."""
    while True:
        item = claim(model.team, 1)
        if item >= batch.n_tasks * model.n_kv_heads:
            return
        task = batch.attention_tasks + _TASK_BYTES * (item // model.n_kv_heads)
        _attend_task(model, batch, layer, task, item % model.n_kv_heads, thread)


@njit
def _attend_task(model, batch, layer, task, kv_head, thread):
    """One task on one key/value head: all chunks its queries see, or one of them."""
    repeats = model.n_heads // model.n_kv_heads
    first_token = v.load_int(task + _FIRST_TOKEN)
    n_queries = repeats * v.load_int(task + _N_TOKENS)
    size = partial_bytes(model.head_size)
    seen = model.scratch + model.scratch_bytes * thread
    queries = seen + (8 * n_queries + 63) // 64 * 64
    merged = queries + query_bytes(model.head_size) * n_queries
    scratch = merged + size * n_queries
    start, end = np.int64(2**62), np.int64(0)
    for i in range(n_queries):
        token, head = first_token + i // repeats, kv_head * repeats + i % repeats
        position = v.load_int(batch.positions + 4 * token)
        first = max(position + 1 - model.sliding_window, 0)
        v.store_int(seen + 8 * i, first)
        v.store_int(seen + 8 * i + 4, position + 1)
        start, end = min(start, first), max(end, position + 1)
        q = model.qkv + _FLOAT * (model.qkv_columns * token + model.head_dim * head)
        scale = model.attention_scale
        pack_query(model.kv_type, q, scale, queries, i, n_queries, model.head_dim, model.head_size)
    first_chunk, end_chunk = start // CHUNK, (end + CHUNK - 1) // CHUNK
    only = v.load_int(task + _CHUNK)
    stride = size
    if only >= 0:
        first_chunk, end_chunk = only, only + 1
        n_chunks = v.load_int(task + _N_CHUNKS)
        place = v.load_int(task + _PARTIAL) + kv_head * n_queries * n_chunks
        parts = model.partials + size * place
        stride = size * n_chunks
        merged_parts = parts + size * (only - v.load_int(task + _FIRST_CHUNK))
    else:
        merged_parts = merged
    for i in range(n_queries):
        reset_partial(merged_parts + stride * i, model.head_size)
    keys, values = _cache_of(model, batch, layer, first_token, kv_head)
    for chunk in range(first_chunk, end_chunk):
        attend_chunk(
            model.kv_type,
            model.key_kernel,
            queries,
            n_queries,
            seen,
            keys,
            values,
            chunk,
            model.head_size,
            merged_parts,
            stride,
            scratch,
        )
    if only >= 0:
        counter = model.arrivals + 8 * (v.load_int(task + _ARRIVALS) + kv_head)
        if atomic.add(counter, 1) < n_chunks - 1:
            return
        v.store_int(counter, 0)
        for i in range(n_queries):
            reset_partial(merged + size * i, model.head_size)
            for chunk in range(n_chunks):
                merge_partial(merged + size * i, parts + stride * i + size * chunk, model.head_size)
    for i in range(n_queries):
        token, head = first_token + i // repeats, kv_head * repeats + i % repeats
        out = model.attended + _FLOAT * (model.attention_padded * token + model.head_dim * head)
        write_output(merged + size * i, out, model.head_dim, model.head_size)
