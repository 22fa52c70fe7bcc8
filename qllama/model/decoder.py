"""The compiled forward pass: every layer of a ragged batch in one call.

A batch is any mix of (token, position, slot): a prompt's chunk, one token of many
sequences, or both. All threads of a team run `decoder_step` together; between
phases they meet at a barrier, inside a phase they claim pieces of work. Who
computes a piece never changes its bits.

One layer, in the names of Hugging Face's modeling_llama:

    x += o_proj(attention(rope(q_proj(n), k_proj(n)), v_proj(n)))   n = input_norm(x)
    x += down_proj(silu(gate_proj(n)) * up_proj(n))                 n = post_attention_norm(x)
"""

from __future__ import annotations

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import njit
from qllama.kernels.activation import group_of, pack_f32, pack_q8
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
from qllama.kernels.embedding import embed_row
from qllama.kernels.linear import Q8_BYTES, call_linear
from qllama.kernels.norm import rms_norm
from qllama.kernels.rope import rope
from qllama.kernels.swiglu import swiglu
from qllama.kernels.team import barrier, claim
from qllama.model.records import DOWN, GATE, UP, K, O, Q, V
from qllama.quant.types import BLOCK, TILE_ROWS

__all__ = ["MAX_LANES", "QUERIES_PER_GROUP", "decoder_step"]

_FLOAT = 4
_TILE_FLOATS = _FLOAT * TILE_ROWS
#: Lanes (queries times heads that share a key/value head) handled together.
QUERIES_PER_GROUP = 12
MAX_LANES = 64
#: A claim of weight tiles is about this many bytes, fewer where there is little work.
_CLAIM_BYTES = 32768


@njit
def decoder_step(models, layers, linears, batches, thread):
    """Evaluate one batch; every thread of the team calls this with its number.

    Parameters
    ----------
    models : MODEL records, (1,)
    layers : LAYER records, (n_layers,)
    linears : LINEAR records, (n_layers + 1, 7)
        A layer's `MATRICES`; the last row holds the token embedding at 0 and the
        output head at 1.
    batches : BATCH records, (1,)
    thread : int64
    """
    model, batch = models[0], batches[0]
    end = model.n_layers
    _embed(model, batch, linears[end, 0])
    barrier(model.team, model.n_threads)
    for i in range(end):
        layer = layers[i]
        _normalize(model, batch.n_tokens, 0, layer.input_norm, thread)
        barrier(model.team, model.n_threads)
        _project_qkv(model, batch, linears, i)
        barrier(model.team, model.n_threads)
        _rotate_and_append(model, batch, layer, i, thread)
        barrier(model.team, model.n_threads)
        _attend(model, batch, i, thread)
        barrier(model.team, model.n_threads)
        _pack_attended(model, batch, thread)
        barrier(model.team, model.n_threads)
        _multiply(
            model, batch.n_tokens, linears[i, O], False, model.residual, model.hidden_padded, 1
        )
        barrier(model.team, model.n_threads)
        _normalize(model, batch.n_tokens, 0, layer.post_attention_norm, thread)
        barrier(model.team, model.n_threads)
        _feed_forward(model, batch.n_tokens, linears[i, GATE], linears[i, UP], thread)
        barrier(model.team, model.n_threads)
        _multiply(
            model, batch.n_tokens, linears[i, DOWN], True, model.residual, model.hidden_padded, 1
        )
        barrier(model.team, model.n_threads)
    _normalize(model, batch.n_outputs, batch.outputs, model.final_norm, thread)
    barrier(model.team, model.n_threads)
    _multiply(model, batch.n_outputs, linears[end, 1], False, batch.logits, batch.logits_columns, 0)
    barrier(model.team, model.n_threads)


@njit
def _embed(model, batch, table):
    """residual[t] = row tokens[t] of the token embedding."""
    while True:
        t = claim(model.team, 1)
        if t >= batch.n_tokens:
            return
        token = v.load_int(batch.tokens + 4 * t)
        tile = table.weights + token // TILE_ROWS * table.tile_bytes
        out = model.residual + _FLOAT * model.hidden_padded * t
        embed_row(table.weight_type, tile, token % TILE_ROWS, table.n_blocks, out)


@njit
def _pack(x, n_blocks, q8, f32, token, n_tokens):
    """Pack one token's row for the kinds of matrices that read it (address 0: none)."""
    group, width = group_of(token, n_tokens)
    if q8 != 0:
        pack_q8(x, n_blocks, q8 + Q8_BYTES * n_blocks * group, width, token - group)
    if f32 != 0:
        pack_f32(x, n_blocks, f32 + _FLOAT * BLOCK * n_blocks * group, width, token - group)


@njit
def _normalize(model, n_tokens, chosen, weight, thread):
    """Pack the norm of residual rows; `chosen` (unless 0) lists which rows."""
    row = model.scratch + model.scratch_bytes * thread
    while True:
        t = claim(model.team, 1)
        if t >= n_tokens:
            return
        source = v.load_int(chosen + 4 * t) if chosen != 0 else t
        x = model.residual + _FLOAT * model.hidden_padded * source
        rms_norm(x, weight, row, model.hidden_size, model.hidden_padded, model.eps)
        n_blocks = model.hidden_padded // BLOCK
        _pack(row, n_blocks, model.packed_q8, model.packed_f32, t, n_tokens)


@njit
def _claim_size(model, n_tiles, tile_bytes, n_tokens):
    """Tiles to claim at once: enough bytes to stream, few enough to share out evenly."""
    if n_tokens > 4:
        return 1
    return max(1, min(_CLAIM_BYTES // tile_bytes, n_tiles // (4 * model.n_threads)))


@njit
def _multiply_tile(linear, tile, activations, n_tokens, out, stride, accumulate):
    """One tile of one matrix times all tokens, plus its bias."""
    weights = linear.weights + tile * linear.tile_bytes
    call_linear(
        linear.kernel, (weights, activations, out, linear.n_blocks, n_tokens, stride, accumulate)
    )
    if linear.bias != 0:
        bias = v.load(linear.bias + _TILE_FLOATS * tile)
        for t in range(n_tokens):
            v.store(out + stride * t, v.load(out + stride * t) + bias)


@njit
def _activations(model, linear, is_hidden):
    """Address of the packed activations that this matrix reads."""
    if is_hidden:
        return model.hidden_f32 if linear.packing == 1 else model.hidden_q8
    return model.packed_f32 if linear.packing == 1 else model.packed_q8


@njit
def _multiply(model, n_tokens, linear, is_hidden, out, columns, accumulate):
    """out[t] (+)= linear(packed activations of t), `columns` floats a row."""
    activations = _activations(model, linear, is_hidden)
    count = _claim_size(model, linear.n_tiles, linear.tile_bytes, n_tokens)
    while True:
        first = claim(model.team, count)
        if first >= linear.n_tiles:
            return
        for tile in range(first, min(first + count, linear.n_tiles)):
            address = out + _TILE_FLOATS * tile
            _multiply_tile(
                linear, tile, activations, n_tokens, address, _FLOAT * columns, accumulate
            )


@njit
def _project_qkv(model, batch, linears, layer):
    """qkv[t] = q, k and v projections, one shared run of tiles."""
    q, k = linears[layer, Q], linears[layer, K]
    k_start = q.n_tiles
    v_start = k_start + k.n_tiles
    n_tiles = v_start + linears[layer, V].n_tiles
    count = _claim_size(model, n_tiles, q.tile_bytes, batch.n_tokens)
    stride = _FLOAT * model.qkv_columns
    while True:
        first = claim(model.team, count)
        if first >= n_tiles:
            return
        for i in range(first, min(first + count, n_tiles)):
            which, tile, column = Q, i, 0
            if i >= v_start:
                which, tile, column = V, i - v_start, model.v_column
            elif i >= k_start:
                which, tile, column = K, i - k_start, model.k_column
            linear = linears[layer, which]
            activations = _activations(model, linear, False)
            out = model.qkv + _FLOAT * column + _TILE_FLOATS * tile
            _multiply_tile(linear, tile, activations, batch.n_tokens, out, stride, 0)


@njit
def _rotate_and_append(model, batch, layer, layer_index, thread):
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
def _attend(model, batch, layer, thread):
    """Attention of every (group of queries, key/value head), split by chunk if asked."""
    n_chunks = max(batch.n_split_chunks, 1)
    first_seen = np.empty(MAX_LANES, np.int64)
    end_seen = np.empty(MAX_LANES, np.int64)
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
def _pack_attended(model, batch, thread):
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
        _pack(row, n_blocks, model.packed_q8, model.packed_f32, t, batch.n_tokens)


@njit
def _feed_forward(model, n_tokens, gate, up, thread):
    """Pack silu(gate) * up, a block of 32 columns (two tiles of each) at a time."""
    stride = _FLOAT * BLOCK
    gates = model.scratch + model.scratch_bytes * thread
    ups = gates + stride * n_tokens
    count = _claim_size(model, model.intermediate_blocks, 4 * gate.tile_bytes, n_tokens)
    while True:
        first = claim(model.team, count)
        if first >= model.intermediate_blocks:
            return
        for block in range(first, min(first + count, model.intermediate_blocks)):
            for half in range(2):
                tile = 2 * block + half
                out = _TILE_FLOATS * half
                if tile < gate.n_tiles:
                    a = _activations(model, gate, False)
                    _multiply_tile(gate, tile, a, n_tokens, gates + out, stride, 0)
                    a = _activations(model, up, False)
                    _multiply_tile(up, tile, a, n_tokens, ups + out, stride, 0)
                    for t in range(n_tokens):
                        row = gates + out + stride * t
                        swiglu(row, ups + out + stride * t, row)
                else:
                    for t in range(n_tokens):
                        v.store(gates + out + stride * t, v.splat(np.float32(0.0)))
            for t in range(n_tokens):
                _pack_block(model, gates + stride * t, block, t, n_tokens)


@njit
def _pack_block(model, row, block, token, n_tokens):
    """Pack one block of 32 columns of the hidden activations of one token."""
    group, width = group_of(token, n_tokens)
    blocks = model.intermediate_blocks * group + width * block
    if model.hidden_q8 != 0:
        pack_q8(row, 1, model.hidden_q8 + Q8_BYTES * blocks, width, token - group)
    if model.hidden_f32 != 0:
        pack_f32(row, 1, model.hidden_f32 + _FLOAT * BLOCK * blocks, width, token - group)
