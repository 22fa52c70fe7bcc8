"""The compiled forward pass: every layer of a ragged batch in one call.

A batch is any mix of (token, position, slot): a prompt's chunk, one token of many
sequences, or both. All threads of a team run `decoder` together; between
phases they meet at a barrier, inside a phase they claim pieces of work. Who
computes a piece never changes its bits.

One layer, in the names of Hugging Face's modeling_llama:

    x += o_proj(attention(rope(q_proj(n), k_proj(n)), v_proj(n)))   n = input_norm(x)
    x += down_proj(silu(gate_proj(n)) * up_proj(n))                 n = post_attention_norm(x)
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import carray, njit
from qllama.kernels.embedding import embed_row
from qllama.kernels.team import barrier, claim, team_function
from qllama.model.low_rank import add_to_embedding
from qllama.model.projections import (
    feed_forward,
    multiply,
    multiply_head,
    normalize,
    normalize_outputs,
    pack_rows,
    project_qkv,
)
from qllama.model.records import BATCH, DOWN, GATE, LAYER, LINEAR, MATRICES, MODEL, STEP, UP, O
from qllama.model.self_attention import attend, rotate_and_append
from qllama.quant.types import TILE_ROWS

__all__ = ["decoder", "embed"]

_FLOAT = 4


@cache
def decoder() -> Any:
    """The forward pass as a function of a team, its argument a STEP record's address."""
    return team_function(_decoder_step)


def _decoder_step(address, thread):
    step = carray(v.pointer(address), 1, STEP)[0]
    model = carray(v.pointer(step.model), 1, MODEL)[0]
    batch = carray(v.pointer(step.batch), 1, BATCH)[0]
    n_layers = model.n_layers
    layers = carray(v.pointer(step.layers), n_layers, LAYER)
    linears = carray(v.pointer(step.linears), (n_layers + 1, len(MATRICES)), LINEAR)
    if step.first_layer == 0:
        embed(model, batch, linears[n_layers, 0])
        barrier(model.team, model.n_threads)
    for i in range(step.first_layer, step.end_layer):
        _decoder_layer(model, batch, layers[i], linears, i, thread)
    if step.end_layer == n_layers:
        head = linears[n_layers, 1]
        normalize_outputs(model, batch, head, thread)
        multiply_head(model, batch, head, thread)


@njit
def _decoder_layer(model, batch, layer, linears, i, thread):
    n_tokens, residual, columns = batch.n_tokens, model.residual, model.hidden_padded
    normalize(model, n_tokens, layer.input_norm, thread)
    project_qkv(model, batch, linears, i, thread)
    barrier(model.team, model.n_threads)
    rotate_and_append(model, batch, layer, i, thread)
    barrier(model.team, model.n_threads)
    attend(model, batch, i, thread)
    barrier(model.team, model.n_threads)
    pack_rows(model, n_tokens, model.attended, model.attention_padded, thread)
    multiply(model, n_tokens, linears[i, O], False, residual, columns, 1, thread)
    barrier(model.team, model.n_threads)
    normalize(model, n_tokens, layer.post_attention_norm, thread)
    feed_forward(model, n_tokens, linears[i, GATE], linears[i, UP], thread)
    barrier(model.team, model.n_threads)
    multiply(model, n_tokens, linears[i, DOWN], True, residual, columns, 1, thread)
    barrier(model.team, model.n_threads)


@njit
def embed(model, batch, table):
    """residual[t] = row tokens[t] of the token embedding.

    `model` and `batch` are their records, `table` the LINEAR record of the embedding.
    """
    while True:
        t = claim(model.team, 1)
        if t >= batch.n_tokens:
            return
        token = v.load_int(batch.tokens + 4 * t)
        tile = table.weights + token // TILE_ROWS * table.tile_bytes
        out = model.residual + _FLOAT * model.hidden_padded * t
        embed_row(table.weight_type, tile, token % TILE_ROWS, table.n_blocks, out)
        add_to_embedding(table, token, model.hidden_padded // TILE_ROWS, out)
        # Zeros beside weights in a block of q4 need not decode to 0, and norms count them.
        for i in range(model.hidden_size, model.hidden_padded):
            v.store_scalar(out + _FLOAT * i, np.float32(0.0))
