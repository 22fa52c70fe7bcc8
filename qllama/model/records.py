"""The plain records that tell the compiled forward pass where everything is.

Addresses and sizes only, as numpy record types, so that compiled code reads them
by name. `weights` and `engine` fill them in; `decoder` reads them.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "BATCH",
    "DOWN",
    "GATE",
    "LAYER",
    "LINEAR",
    "MATRICES",
    "MODEL",
    "STAGE",
    "STEP",
    "UP",
    "K",
    "O",
    "Q",
    "V",
]

#: A layer's matrices, by index; names are Hugging Face's.
MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
Q, K, V, O, GATE, UP, DOWN = range(len(MATRICES))  # noqa: E741


def _int64(*names: str) -> list[tuple[str, type]]:
    return [(name, np.int64) for name in names]


#: One matrix. `packing`: 0 takes q8 activations, 1 takes f32. `bias` 0: none.
#: `weight_type` is the place in `weight_kernels.WEIGHT_KERNELS`. `low_...`: the update
#: B A of an adapter, `low_a` 0 for none: both matrices, tiles of A's rows, blocks of B's
#: columns, where A x is packed, and the kernel of float32 matrices (`low_rank`).
LINEAR = np.dtype(
    _int64(
        "weights", "kernel", "weight_type", "packing", "tile_bytes", "n_tiles", "n_blocks", "bias"
    )
    + _int64("low_a", "low_b", "low_tiles", "low_blocks", "low_packed", "low_kernel")
)

#: One layer's vectors, by address of zero-padded float32; 0 where there is none.
LAYER = np.dtype(_int64("input_norm", "post_attention_norm", "q_norm", "k_norm"))

#: What stays the same from step to step.
MODEL = np.dtype(
    [
        *_int64("n_layers", "hidden_size", "hidden_padded", "intermediate_blocks"),
        *_int64("n_heads", "n_kv_heads", "head_dim", "sliding_window", "final_norm"),
        # Float32 columns of the q, k, v buffer where k and v start, and of one row.
        *_int64("k_column", "v_column", "qkv_columns", "attention_padded"),
        # Key/value cache: `KvCache`'s attributes, and the kernel that reads keys of q8.
        *_int64("kv_type", "keys", "values", "head_size"),
        *_int64("head_bytes", "slot_bytes", "layer_bytes", "key_kernel"),
        # Buffers: residual stream, packed activations of both kinds, q/k/v, attention
        # output, partials and arrivals of split attention, `scratch_bytes` for each thread.
        # Every packed row has room for `packed_columns` columns, of q8 for two rows of them.
        *_int64(
            "packed_columns", "residual", "packed_q8", "packed_f32", "qkv", "attended", "partials"
        ),
        *_int64("arrivals", "hidden_q8", "hidden_f32", "scratch", "scratch_bytes"),
        # And what the matrix kernels may write, `unpacked_bytes` for each thread.
        *_int64("unpacked", "unpacked_bytes"),
        *_int64("team", "n_threads"),
        ("eps", np.float32),
        ("attention_scale", np.float32),
    ],
    align=True,
)

#: What one step computes. Token arrays hold int32; `attention_tasks` the int32 records
#: of `attention_plan`; `outputs` the tokens whose logits are wanted.
BATCH = np.dtype(
    _int64("n_tokens", "tokens", "positions", "slots", "cos", "sin")
    + _int64("n_tasks", "attention_tasks")
    + _int64("n_outputs", "outputs", "logits", "logits_columns")
)

#: One call of the team: layers `first_layer` .. `end_layer` - 1 of a batch, with the
#: embedding before the first and the output head after the last of all. Addresses of
#: the MODEL, LAYER (n_layers,), LINEAR (n_layers + 1, 7) and BATCH records.
STEP = np.dtype(_int64("model", "layers", "linears", "batch", "first_layer", "end_layer"))

#: One stage of a layer, for `stages`: its number there, the layer's, and addresses of
#: float32 rows: what it reads, and what it writes. Two matrices or two factors take two;
#: `accumulate` as in `projections.multiply`.
STAGE = np.dtype(
    _int64("step", "stage", "layer", "rows", "second_rows", "out", "second_out", "accumulate")
)
