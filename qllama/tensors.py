"""The tensors of a model: canonical names (Hugging Face's) and shapes, from its config.

Owns the list that the converter must fill and the engine binds. Opens no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qllama.config import ModelConfig

__all__ = ["EMBEDDING", "FINAL_NORM", "HEAD", "ROPE_DIVISORS", "differences", "expected_shapes"]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
ROPE_DIVISORS = "model.rope_divisors"


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """List the tensors of a model.

    Returns
    -------
    dict
        Canonical name to shape, (n,) or (rows, k), in the order of a `.qlm`
        tensor table: the order in which a forward pass reads them.
    """
    c = config
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (c.vocab_size, c.hidden_size)}
    if c.rope_scaling is not None and c.rope_scaling.rope_type == "divisors":
        shapes[ROPE_DIVISORS] = (c.head_dim // 2,)
    for i in range(c.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in _layer_shapes(c).items()}
    shapes[FINAL_NORM] = (c.hidden_size,)
    if not c.tie_word_embeddings:
        shapes[HEAD] = (c.vocab_size, c.hidden_size)
    return shapes


def differences(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """Say what is wrong with the tensors of a model, one line a tensor.

    Parameters
    ----------
    expected, found : mapping
        Name to shape.
    """
    for name, shape in expected.items():
        if name not in found:
            yield f"tensor {name} is missing"
        elif found[name] != shape:
            yield f"tensor {name}: expected shape {shape}, found {found[name]}"
    for name in found:
        if name not in expected:
            yield f"tensor {name} is not one that this model uses"


def _layer_shapes(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (c.hidden_size,)}
    for name, rows in (("q", c.q_dim), ("k", c.kv_dim), ("v", c.kv_dim)):
        shapes[f"self_attn.{name}_proj.weight"] = (rows, c.hidden_size)
        if c.attention_bias:
            shapes[f"self_attn.{name}_proj.bias"] = (rows,)
    if c.qk_norm:
        shapes["self_attn.q_norm.weight"] = (c.head_dim,)
        shapes["self_attn.k_norm.weight"] = (c.head_dim,)
    shapes["self_attn.o_proj.weight"] = (c.hidden_size, c.q_dim)
    if c.attention_output_bias:
        shapes["self_attn.o_proj.bias"] = (c.hidden_size,)
    shapes["post_attention_layernorm.weight"] = (c.hidden_size,)
    for name, rows, k in (
        ("gate", c.intermediate_size, c.hidden_size),
        ("up", c.intermediate_size, c.hidden_size),
        ("down", c.hidden_size, c.intermediate_size),
    ):
        shapes[f"mlp.{name}_proj.weight"] = (rows, k)
        if c.mlp_bias:
            shapes[f"mlp.{name}_proj.bias"] = (rows,)
    return shapes
