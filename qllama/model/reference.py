"""The same forward pass in plain numpy: the oracle of the compiled one.

Reads top to bottom like the paper; slow, float32, no cache: it evaluates a whole
text at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from qllama.format import QlmFile
from qllama.kernels import reference as ops
from qllama.model.rotary import RotaryTable
from qllama.tensors import EMBEDDING, FINAL_NORM, HEAD, ROPE_DIVISORS

__all__ = ["forward"]

F32 = npt.NDArray[np.float32]


def forward(
    file: QlmFile,
    tokens: Sequence[int],
    *,
    quantize_activations: bool = False,
    kv_type: str = "f16",
) -> F32:
    """Logits of every position of one text.

    Parameters
    ----------
    file : QlmFile
    tokens : sequence of int, (n_tokens,)
    quantize_activations : bool
        Round the inputs of integer-typed matrices (but the head) to int8 blocks of 32,
        and keys and values to `kv_type`, as the compiled kernels do; else all float32.
    kv_type : str
        `f16` or `q8`, which rounds the queries too, to int8 blocks of 32.

    Returns
    -------
    float32, (n_tokens, vocab_size)

    References
    ----------
    Touvron et al. 2023, "LLaMA"; Grattafiori et al. 2024, "The Llama 3 Herd of Models".
    """
    config = file.config
    positions = np.arange(len(tokens))
    divisors = file.vector(ROPE_DIVISORS) if ROPE_DIVISORS in file.tensors else None
    cos, sin = RotaryTable(config, divisors)(positions)

    def vector(name: str) -> F32:
        return file.vector(name)

    def in_blocks(x: F32, rounded: Callable[[F32], F32]) -> F32:
        """Apply a rounding in blocks of 32 to the last axis, padded as the kernels pad it."""
        n = x.shape[-1]
        rows = np.pad(x.reshape(-1, n), ((0, 0), (0, -n % 32)))
        return rounded(rows)[:, :n].reshape(x.shape)

    def linear(x: F32, name: str) -> F32:
        weight = file.matrix(name + ".weight")
        bias = file.vector(name + ".bias") if name + ".bias" in file.tensors else None
        if quantize_activations and file.tensors[name + ".weight"].type.startswith("q"):
            x = in_blocks(x, lambda x: ops.dequantize_activations(*ops.quantize_activations(x)))
        return ops.linear(x, weight, bias)

    def heads(x: F32, norm: str) -> F32:
        """Split into heads, norm each if the model does, rotate."""
        x = x.reshape(len(tokens), -1, config.head_dim)
        if config.qk_norm:
            x = ops.rms_norm(x, vector(norm), config.rms_norm_eps)
        return ops.rope(x, cos, sin)

    def cached(x: F32) -> F32:
        return in_blocks(x, lambda x: ops.kv_rounded(x, kv_type)) if quantize_activations else x

    def asked(q: F32) -> F32:
        """Queries as they meet the keys."""
        if not quantize_activations or kv_type == "f16":
            return q
        return in_blocks(q, lambda q: ops.dequantize_activations(*ops.quantize_activations(q)))

    head = EMBEDDING if config.tie_word_embeddings else HEAD
    x = file.matrix(EMBEDDING)[np.asarray(tokens)]
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."
        n = ops.rms_norm(x, vector(layer + "input_layernorm.weight"), config.rms_norm_eps)
        q = heads(linear(n, layer + "self_attn.q_proj"), layer + "self_attn.q_norm.weight")
        k = heads(linear(n, layer + "self_attn.k_proj"), layer + "self_attn.k_norm.weight")
        v = linear(n, layer + "self_attn.v_proj").reshape(k.shape)
        attended = ops.attention(asked(q), cached(k), cached(v), positions, config.sliding_window)
        x = x + linear(attended.reshape(len(tokens), -1), layer + "self_attn.o_proj")

        n = ops.rms_norm(x, vector(layer + "post_attention_layernorm.weight"), config.rms_norm_eps)
        hidden = ops.swiglu(linear(n, layer + "mlp.gate_proj"), linear(n, layer + "mlp.up_proj"))
        x = x + linear(hidden, layer + "mlp.down_proj")
    x = ops.rms_norm(x, vector(FINAL_NORM), config.rms_norm_eps)
    # The compiled head reads its input to twice the bits: here, unrounded.
    return ops.linear(x, file.matrix(head))
