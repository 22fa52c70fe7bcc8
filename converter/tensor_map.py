"""Tensor names and shapes: what a model of a given config must have, and who calls it what.

Owns the canonical list (Hugging Face's names) and the tables that translate a
checkpoint format's names to it. Opens no file and holds no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from converter.wording import shown
from qllama.config import ModelConfig
from qllama.errors import ConversionError

__all__ = ["EMBEDDING", "HEAD", "ROPE_DIVISORS", "check_tensors", "expected_shapes", "from_gguf"]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ROPE_DIVISORS = "model.rope_divisors"

_GGUF_NAMES = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": HEAD,
    "rope_freqs.weight": ROPE_DIVISORS,
}

_GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_GGUF_LAYER = re.compile(r"blk\.(0|[1-9][0-9]*)\.([a-z_]+)\.(weight|bias)")

# Rotary tables that early converters wrote out; the model config says the same.
_GGUF_IGNORED = re.compile(r"blk\.[0-9]+\.attn_rot_embd(\.weight)?")


def from_gguf(name: str) -> str | None:
    """Translate a GGUF tensor name to the canonical one.

    Returns
    -------
    str or None
        A name that qllama has no place for is returned as it is, so that
        `check_tensors` names it; None means that it is known to be superfluous.
    """
    if _GGUF_IGNORED.fullmatch(name):
        return None
    if name in _GGUF_NAMES:
        return _GGUF_NAMES[name]
    match = _GGUF_LAYER.fullmatch(name)
    if match is None or match[2] not in _GGUF_LAYER_NAMES:
        return name
    return f"model.layers.{match[1]}.{_GGUF_LAYER_NAMES[match[2]]}.{match[3]}"


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
    shapes["model.norm.weight"] = (c.hidden_size,)
    if not c.tie_word_embeddings:
        shapes[HEAD] = (c.vocab_size, c.hidden_size)
    return shapes


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


def check_tensors(
    path: Path,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse a checkpoint that lacks a tensor, has one too many, or has one of another shape.

    Parameters
    ----------
    path : Path
        For the message.
    found, expected : mapping
        Canonical name to shape.

    Raises
    ------
    ConversionError
        Names the tensors.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise ConversionError(f"{path}: missing tensor(s): {_listed(missing)}")
    extra = [name for name in found if name not in expected]
    if extra:
        raise ConversionError(
            f"{path}: tensor(s) that qllama has no use for, so the model is not what its "
            f"metadata says: {_listed(extra)}"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ConversionError(
                f"{path}: tensor {name}: expected shape {shape}, found {found[name]}"
            )


def _listed(names: Iterable[str]) -> str:
    names = [shown(name) for name in names]
    first = ", ".join(names[:5])
    return first if len(names) <= 5 else f"{first} and {len(names) - 5} more"
