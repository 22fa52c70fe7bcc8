"""The forward pass of `decoder` cut into stages, so that Python can look on in between.

The same functions on the same buffers; only what `decoder` fuses (a norm and its
packing, the feed-forward layer's three steps) is apart here, with float32 rows in
between. `stepwise` calls the stages in order: the results are those of `decoder`, to the
bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from qllama.kernels import vector as v
from qllama.kernels._jit import carray, njit
from qllama.kernels.norm import rms_norm
from qllama.kernels.swiglu import swiglu
from qllama.kernels.team import barrier, claim, team_function
from qllama.model.decoder import embed
from qllama.model.projections import (
    multiply,
    multiply_head,
    next_token,
    pack_output,
    pack_row,
    pack_rows,
    packed,
    packed_by_all,
    project_qkv,
)
from qllama.model.records import (
    BATCH,
    DOWN,
    GATE,
    LAYER,
    LINEAR,
    MATRICES,
    MODEL,
    STAGE,
    STEP,
    UP,
    O,
)
from qllama.model.self_attention import append, attend, rotate
from qllama.quant.types import BLOCK

__all__ = [
    "APPEND",
    "ATTEND",
    "ATTENTION_NORM",
    "EMBED",
    "HEAD",
    "MLP_NORM",
    "OUTPUT_NORM",
    "PROJECT_DOWN",
    "PROJECT_GATE_UP",
    "PROJECT_O",
    "PROJECT_QKV",
    "ROTATE",
    "SWIGLU",
    "stages",
]

(
    EMBED,
    ATTENTION_NORM,
    PROJECT_QKV,
    ROTATE,
    APPEND,
    ATTEND,
    PROJECT_O,
    MLP_NORM,
    PROJECT_GATE_UP,
    SWIGLU,
    PROJECT_DOWN,
    OUTPUT_NORM,
    HEAD,
) = range(13)

_FLOAT = 4
_LANES_BYTES = _FLOAT * v.LANES


@cache
def stages() -> Any:
    """Every stage, as one function of a team; its argument is a STAGE record's address."""
    return team_function(_stage)


def _stage(address, thread):
    call = carray(v.pointer(address), 1, STAGE)[0]
    step = carray(v.pointer(call.step), 1, STEP)[0]
    model = carray(v.pointer(step.model), 1, MODEL)[0]
    batch = carray(v.pointer(step.batch), 1, BATCH)[0]
    n_layers, i = model.n_layers, call.layer
    layer = carray(v.pointer(step.layers), n_layers, LAYER)[min(i, n_layers - 1)]
    linears = carray(v.pointer(step.linears), (n_layers + 1, len(MATRICES)), LINEAR)
    n_tokens, hidden, rows, out = batch.n_tokens, model.hidden_padded, call.rows, call.out
    stage, mlp = call.stage, BLOCK * model.intermediate_blocks
    if stage == EMBED:
        embed(model, batch, linears[n_layers, 0])
    elif stage == ATTENTION_NORM:
        _normalize(model, n_tokens, 0, layer.input_norm, out)
    elif stage == MLP_NORM:
        _normalize(model, n_tokens, 0, layer.post_attention_norm, out)
    elif stage == PROJECT_QKV:
        pack_rows(model, n_tokens, rows, hidden, thread)
        project_qkv(model, batch, linears, i, thread)
    elif stage == ROTATE:
        rotate(model, batch, layer, thread)
    elif stage == APPEND:
        append(model, batch, i, thread)
    elif stage == ATTEND:
        attend(model, batch, i, thread)
    elif stage == PROJECT_O:
        pack_rows(model, n_tokens, model.attended, model.attention_padded, thread)
        multiply(model, n_tokens, linears[i, O], False, out, hidden, call.accumulate, thread)
    elif stage == PROJECT_GATE_UP:
        pack_rows(model, n_tokens, rows, hidden, thread)
        multiply(model, n_tokens, linears[i, GATE], False, out, mlp, 0, thread)
        barrier(model.team, model.n_threads)
        multiply(model, n_tokens, linears[i, UP], False, call.second_out, mlp, 0, thread)
    elif stage == SWIGLU:
        _activate(model, n_tokens, rows, call.second_rows, out)
    elif stage == PROJECT_DOWN:
        _pack_hidden(model, n_tokens, rows)
        multiply(model, n_tokens, linears[i, DOWN], True, out, hidden, call.accumulate, thread)
    elif stage == OUTPUT_NORM:
        _normalize(model, batch.n_outputs, batch.outputs, model.final_norm, out)
    elif stage == HEAD:
        head = linears[n_layers, 1]
        _pack_outputs(model, batch, head, rows, thread)
        multiply_head(model, batch, head, thread)


@njit
def _normalize(model, n_rows, places, weight, out):
    """out[t] = norm of residual row t, or row places[t] where `places` is not 0."""
    while True:
        t = claim(model.team, 1)
        if t >= n_rows:
            return
        row = v.load_int(places + 4 * t) if places != 0 else t
        x = model.residual + _FLOAT * model.hidden_padded * row
        target = out + _FLOAT * model.hidden_padded * t
        rms_norm(x, weight, target, model.hidden_size, model.hidden_padded, model.eps)


@njit
def _activate(model, n_tokens, gates, ups, out):
    """out[t] = silu(gates[t]) * ups[t]."""
    row_bytes = _FLOAT * BLOCK * model.intermediate_blocks
    while True:
        t = claim(model.team, 1)
        if t >= n_tokens:
            return
        for i in range(row_bytes * t, row_bytes * (t + 1), _LANES_BYTES):
            swiglu(gates + i, ups + i, out + i)


@njit
def _pack_hidden(model, n_tokens, rows):
    """Pack what the feed-forward layer's last matrix reads, once for all threads."""
    n_blocks = model.intermediate_blocks
    t = claim(model.team, 1)
    while t < n_tokens:
        row = rows + _FLOAT * BLOCK * n_blocks * t
        pack_row(row, n_blocks, model.hidden_q8, model.hidden_f32, t, n_tokens)
        t = claim(model.team, 1)
    barrier(model.team, model.n_threads)


@njit
def _pack_outputs(model, batch, head, rows, thread):
    """Pack normalized rows for the head; they stay as they are."""
    scratch = model.scratch + model.scratch_bytes * thread
    n_outputs, row_bytes = batch.n_outputs, _FLOAT * model.hidden_padded
    q8, f32 = packed(model, n_outputs, thread)
    t = next_token(model, n_outputs, -1)
    while t < n_outputs:
        for i in range(0, row_bytes, _LANES_BYTES):
            v.store(scratch + i, v.load(rows + row_bytes * t + i))
        pack_output(head, scratch, model.hidden_padded // BLOCK, q8, f32, t, n_outputs)
        t = next_token(model, n_outputs, t)
    packed_by_all(model, n_outputs)
