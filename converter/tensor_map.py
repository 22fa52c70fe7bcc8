"""Tensor names: who calls what how, and whether a checkpoint has exactly what it must.

Owns the tables that translate a checkpoint format's names to the canonical ones
of `qllama.tensors`. Opens no file and holds no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from converter.wording import shown
from qllama.errors import ConversionError
from qllama.tensors import EMBEDDING, FINAL_NORM, HEAD, ROPE_DIVISORS

__all__ = ["check_tensors", "from_gguf"]

_GGUF_NAMES = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": FINAL_NORM,
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
