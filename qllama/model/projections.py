"""Matrix phases of the compiled forward pass: norms, projections, feed-forward.

Each function runs on every thread of a team at once; see `decoder`. Throughout:
`model`, `batch` and `linears` are the records of `records`, `layer` is a layer's
number, `thread` this thread's, `n_tokens` the tokens of the batch.
"""

from __future__ import annotations

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import njit
from qllama.kernels.activation import group_of, pack_f32, pack_q8, q8_residual
from qllama.kernels.isa import current_isa
from qllama.kernels.linear import call_linear
from qllama.kernels.norm import rms_norm
from qllama.kernels.swiglu import swiglu
from qllama.kernels.team import barrier, claim
from qllama.kernels.weight_kernels import Q8_BYTES
from qllama.model.low_rank import expand, shrink
from qllama.model.records import K, Q, V
from qllama.quant.types import BLOCK, TILE_ROWS

__all__ = [
    "feed_forward",
    "multiply",
    "multiply_head",
    "next_token",
    "normalize",
    "normalize_outputs",
    "pack_output",
    "pack_row",
    "pack_rows",
    "packed",
    "packed_by_all",
    "project_qkv",
]

_FLOAT = 4
_TILE_FLOATS = _FLOAT * TILE_ROWS
#: Up to so many tokens weights are what takes time, and each thread's should be a stream.
_FEW_TOKENS = 8
#: Packed activations of the tokens handled together: they stay in the second-level cache
#: while one tile of weights after the other goes by.
_CACHED_BYTES = 1 << 20
_WIDEST = current_isa().widths[0]


@njit
def pack_row(x, n_blocks, q8, f32, token, n_tokens):
    """Pack one token's row `x` of `n_blocks` blocks to `q8` and `f32`, by address.

    Address 0: no matrix reads that kind.
    """
    group, width = group_of(token, n_tokens)
    if q8 != 0:
        pack_q8(x, n_blocks, q8 + Q8_BYTES * n_blocks * group, width, token - group)
    if f32 != 0:
        pack_f32(x, n_blocks, f32 + _FLOAT * BLOCK * n_blocks * group, width, token - group)


@njit
def packed(model, n_tokens, thread):
    """Addresses of the packed activations (q8, f32; 0: none) that this thread reads.

    A lone token's are packed by every thread for itself, which takes no longer than to
    wait for another one.
    """
    own = thread if n_tokens == 1 else 0
    q8, f32 = model.packed_q8, model.packed_f32
    if q8 != 0:
        q8 += 2 * Q8_BYTES * (model.packed_columns // BLOCK) * own
    if f32 != 0:
        f32 += _FLOAT * model.packed_columns * own
    return q8, f32


@njit
def next_token(model, n_tokens, before):
    """The next token to pack after `before` (-1 at first): claimed, unless it is alone."""
    return before + 1 if n_tokens == 1 else claim(model.team, 1)


@njit
def packed_by_all(model, n_tokens):
    """Wait until all tokens are packed, where threads share that out."""
    if n_tokens != 1:
        barrier(model.team, model.n_threads)


@njit
def normalize(model, n_tokens, weight, thread):
    """Pack the norm of every residual row; `weight` is the norm's, by address."""
    row = model.scratch + model.scratch_bytes * thread
    n_blocks = model.hidden_padded // BLOCK
    q8, f32 = packed(model, n_tokens, thread)
    t = next_token(model, n_tokens, -1)
    while t < n_tokens:
        x = model.residual + _FLOAT * model.hidden_padded * t
        rms_norm(x, weight, row, model.hidden_size, model.hidden_padded, model.eps)
        pack_row(row, n_blocks, q8, f32, t, n_tokens)
        t = next_token(model, n_tokens, t)
    packed_by_all(model, n_tokens)


@njit
def pack_rows(model, n_tokens, rows, columns, thread):
    """Pack float32 rows of `columns` columns, a multiple of 32, from address `rows` on."""
    n_blocks = columns // BLOCK
    q8, f32 = packed(model, n_tokens, thread)
    t = next_token(model, n_tokens, -1)
    while t < n_tokens:
        pack_row(rows + _FLOAT * columns * t, n_blocks, q8, f32, t, n_tokens)
        t = next_token(model, n_tokens, t)
    packed_by_all(model, n_tokens)


@njit
def _claim_tiles(model, n_tiles, n_tokens, together):
    """(first tile, end, first token, tokens) of the next piece of work; 0 tokens: none.

    Many tokens: a tile for up to `together` of them. Few: a run of tiles for all, since
    each new place to read from starts slowly; runs get shorter (guided self-scheduling,
    Polychronopoulos and Kuck 1987), so that the threads end together.
    """
    number = claim(model.team, 1)
    if n_tokens > _FEW_TOKENS:
        part, tile = divmod(number, n_tiles)
        token = part * together
        return tile, tile + 1, token, max(0, min(together, n_tokens - token))
    first, run = 0, 0
    for i in range(number + 1):
        first += run
        if i % model.n_threads == 0:
            run = max(1, (n_tiles - first) // (2 * model.n_threads))
    end = min(first + run, n_tiles)
    return first, end, 0, n_tokens if first < n_tiles else 0


@njit
def _token_bytes(linear):
    """Bytes of one token's packed activations."""
    return linear.n_blocks * (_FLOAT * BLOCK if linear.packing == 1 else Q8_BYTES)


@njit
def _cached_tokens(linear):
    """Tokens handled together, a multiple of the widest group: no group is cut in two."""
    return max(1, _CACHED_BYTES // _token_bytes(linear) // _WIDEST) * _WIDEST


@njit
def _multiply_tile(model, linear, tile, activations, first, n_tokens, out, accumulate, thread):
    """One tile of one matrix times tokens `first` .. of a batch, plus its bias.

    `activations` is the address of the batch's, `out` (address, bytes a row) of token
    `first`'s outputs.
    """
    address, stride = out
    weights = linear.weights + tile * linear.tile_bytes
    inputs = activations + _token_bytes(linear) * first
    scratch = model.unpacked + model.unpacked_bytes * thread
    n_blocks = linear.n_blocks
    call_linear(
        linear.kernel, (weights, inputs, address, n_blocks, n_tokens, stride, accumulate, scratch)
    )
    if linear.bias != 0:
        bias = v.load(linear.bias + _TILE_FLOATS * tile)
        for t in range(n_tokens):
            v.store(address + stride * t, v.load(address + stride * t) + bias)


@njit
def _activations(model, linear, n_tokens, thread):
    """Address of the packed activations that this matrix reads."""
    q8, f32 = packed(model, n_tokens, thread)
    return f32 if linear.packing == 1 else q8


@njit
def multiply(model, n_tokens, linear, is_hidden, out, columns, accumulate, thread):
    """out[t] (+)= linear(packed activations of t), `columns` floats a row.

    `is_hidden`: the activations are those between the feed-forward layer's matrices.
    Nonzero `accumulate` adds to `out`.
    """
    if is_hidden:
        q8, f32 = model.hidden_q8, model.hidden_f32
    else:
        q8, f32 = packed(model, n_tokens, thread)
    activations = f32 if linear.packing == 1 else q8
    if linear.low_a != 0:
        shrink(model, linear, f32, n_tokens, 0, thread)
        barrier(model.team, model.n_threads)
    stride = _FLOAT * columns
    together = _cached_tokens(linear)
    while True:
        first, end, token, n = _claim_tiles(model, linear.n_tiles, n_tokens, together)
        if n == 0:
            return
        for tile in range(first, end):
            address = out + stride * token + _TILE_FLOATS * tile
            _multiply_tile(
                model, linear, tile, activations, token, n, (address, stride), accumulate, thread
            )
            expand(linear, tile, token, n, address, stride)


@njit
def project_qkv(model, batch, linears, layer, thread):
    """qkv[t] = q, k and v projections, one shared run of tiles."""
    q, k, v_linear = linears[layer, Q], linears[layer, K], linears[layer, V]
    if q.low_a != 0 or k.low_a != 0 or v_linear.low_a != 0:
        _q8, f32 = packed(model, batch.n_tokens, thread)
        pieces = shrink(model, q, f32, batch.n_tokens, 0, thread)
        pieces = shrink(model, k, f32, batch.n_tokens, pieces, thread)
        shrink(model, v_linear, f32, batch.n_tokens, pieces, thread)
        barrier(model.team, model.n_threads)
    k_start = q.n_tiles
    v_start = k_start + k.n_tiles
    n_tiles = v_start + v_linear.n_tiles
    stride = _FLOAT * model.qkv_columns
    together = _cached_tokens(q)
    while True:
        first, end, token, n = _claim_tiles(model, n_tiles, batch.n_tokens, together)
        if n == 0:
            return
        for i in range(first, end):
            which, tile, column = Q, i, 0
            if i >= v_start:
                which, tile, column = V, i - v_start, model.v_column
            elif i >= k_start:
                which, tile, column = K, i - k_start, model.k_column
            linear = linears[layer, which]
            activations = _activations(model, linear, batch.n_tokens, thread)
            out = model.qkv + stride * token + _FLOAT * column + _TILE_FLOATS * tile
            _multiply_tile(model, linear, tile, activations, token, n, (out, stride), 0, thread)
            expand(linear, tile, token, n, out, stride)


@njit
def normalize_outputs(model, batch, head, thread):
    """Pack the final norm of the wanted tokens for the output head.

    The head's rounding errors go straight into the logits (a third of the
    divergence that int8 activations cause), so an integer head reads each token
    twice: rounded, and what the rounding left over.
    """
    row = model.scratch + model.scratch_bytes * thread
    n_blocks = model.hidden_padded // BLOCK
    n_outputs = batch.n_outputs
    q8, f32 = packed(model, n_outputs, thread)
    t = next_token(model, n_outputs, -1)
    while t < n_outputs:
        x = model.residual + _FLOAT * model.hidden_padded * v.load_int(batch.outputs + 4 * t)
        rms_norm(x, model.final_norm, row, model.hidden_size, model.hidden_padded, model.eps)
        pack_output(head, row, n_blocks, q8, f32, t, n_outputs)
        t = next_token(model, n_outputs, t)
    packed_by_all(model, n_outputs)


@njit
def pack_output(head, row, n_blocks, q8, f32, t, n_outputs):
    """Pack the normalized row of output `t` of `n_outputs` for the head.

    `row` is its address, of `n_blocks` blocks of 32, and is not kept; `q8` and `f32` are the
    addresses of what is packed.
    """
    if head.packing == 1 or head.low_a != 0:
        pack_row(row, n_blocks, 0, f32, t, n_outputs)
    if head.packing != 1:
        pack_row(row, n_blocks, q8, 0, 2 * t, 2 * n_outputs)
        q8_residual(row, n_blocks)
        pack_row(row, n_blocks, q8, 0, 2 * t + 1, 2 * n_outputs)


@njit
def multiply_head(model, batch, head, thread):
    """logits[t] = head(final norm of output t), the parts of a token added up."""
    parts = 1 if head.packing == 1 else 2
    n_rows = parts * batch.n_outputs
    activations = _activations(model, head, batch.n_outputs, thread)
    rows = model.scratch + model.scratch_bytes * thread
    if head.low_a != 0:
        _q8, f32 = packed(model, batch.n_outputs, thread)
        shrink(model, head, f32, batch.n_outputs, 0, thread)
        barrier(model.team, model.n_threads)
    while True:
        first, end, _token, n = _claim_tiles(model, head.n_tiles, n_rows, max(1, n_rows))
        if n == 0:
            return
        for tile in range(first, end):
            out = (rows, _TILE_FLOATS)
            _multiply_tile(model, head, tile, activations, 0, n_rows, out, 0, thread)
            for t in range(batch.n_outputs):
                logits = v.load(rows + _TILE_FLOATS * parts * t)
                if parts == 2:
                    logits = logits + v.load(rows + _TILE_FLOATS * (2 * t + 1))
                out = batch.logits + _FLOAT * batch.logits_columns * t + _TILE_FLOATS * tile
                v.store(out, logits)
            out = batch.logits + _TILE_FLOATS * tile
            expand(head, tile, 0, batch.n_outputs, out, _FLOAT * batch.logits_columns)


@njit
def feed_forward(model, n_tokens, gate, up, thread):
    """Pack silu(gate) * up, a block of 32 columns (two tiles of each) at a time."""
    stride = _FLOAT * BLOCK
    gates = model.scratch + model.scratch_bytes * thread
    ups = gates + stride * n_tokens
    n_blocks = model.intermediate_blocks
    together = _cached_tokens(gate)
    if gate.low_a != 0 or up.low_a != 0:
        _q8, f32 = packed(model, n_tokens, thread)
        pieces = shrink(model, gate, f32, n_tokens, 0, thread)
        shrink(model, up, f32, n_tokens, pieces, thread)
        barrier(model.team, model.n_threads)
    while True:
        first, end, token, n = _claim_tiles(model, n_blocks, n_tokens, together)
        if n == 0:
            return
        for block in range(first, end):
            for half in range(2):
                tile = 2 * block + half
                out = _TILE_FLOATS * half
                if tile < gate.n_tiles:
                    a = _activations(model, gate, n_tokens, thread)
                    _multiply_tile(model, gate, tile, a, token, n, (gates + out, stride), 0, thread)
                    expand(gate, tile, token, n, gates + out, stride)
                    a = _activations(model, up, n_tokens, thread)
                    _multiply_tile(model, up, tile, a, token, n, (ups + out, stride), 0, thread)
                    expand(up, tile, token, n, ups + out, stride)
                    for t in range(n):
                        row = gates + out + stride * t
                        swiglu(row, ups + out + stride * t, row)
                else:
                    for t in range(n):
                        v.store(gates + out + stride * t, v.splat(np.float32(0.0)))
            for t in range(n):
                _pack_block(model, gates + stride * t, block, token + t, n_tokens)


@njit
def _pack_block(model, row, block, token, n_tokens):
    """Pack one block of 32 columns of the hidden activations of one token."""
    group, width = group_of(token, n_tokens)
    blocks = model.intermediate_blocks * group + width * block
    if model.hidden_q8 != 0:
        pack_q8(row, 1, model.hidden_q8 + Q8_BYTES * blocks, width, token - group)
    if model.hidden_f32 != 0:
        pack_f32(row, 1, model.hidden_f32 + _FLOAT * BLOCK * blocks, width, token - group)
