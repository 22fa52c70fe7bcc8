"""Tensor names: who calls what how, and whether a checkpoint has exactly what it must.

Owns the tables that translate a checkpoint format's names to the canonical ones
of `qllama.tensors`. Opens no file and holds no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from converter.wording import listed
from qllama.errors import ConversionError
from qllama.tensors import EMBEDDING, FINAL_NORM, HEAD, ROPE_DIVISORS

__all__ = ["check_tensors", "from_gguf", "to_gguf"]

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


def from_gguf(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Translate the names of a GGUF file's tensors.

    Returns
    -------
    dict
        Canonical name to GGUF's; tensors known to be superfluous are left out.
    list of str
        GGUF names that qllama has no place for. They are kept apart because such
        a name may be anything, a canonical one too.
    """
    canonical: dict[str, str] = {}
    unknown: list[str] = []
    for name in names:
        match = _GGUF_LAYER.fullmatch(name)
        if name in _GGUF_NAMES:
            canonical[_GGUF_NAMES[name]] = name
        elif match is not None and match[2] in _GGUF_LAYER_NAMES:
            canonical[f"model.layers.{match[1]}.{_GGUF_LAYER_NAMES[match[2]]}.{match[3]}"] = name
        elif not _GGUF_IGNORED.fullmatch(name):
            unknown.append(name)
    return canonical, unknown


def to_gguf(name: str) -> str:
    """Translate the canonical `name` of a model's tensor to GGUF's."""
    whole = {canonical: stored for stored, canonical in _GGUF_NAMES.items()}
    if name in whole:
        return whole[name]
    in_layer = {canonical: stored for stored, canonical in _GGUF_LAYER_NAMES.items()}
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{in_layer[part]}.{kind}"


def check_tensors(
    path: Path,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    unknown: Sequence[str] = (),
) -> None:
    """Refuse a checkpoint that lacks a tensor, has one too many, or has one of another shape.

    Parameters
    ----------
    path : Path
        For the message.
    found, expected : mapping
        Canonical name to shape.
    unknown : sequence of str
        The checkpoint's own names of tensors that have no canonical one.

    Raises
    ------
    ConversionError
        Names the tensors.
    """
    extra = [*unknown, *(name for name in found if name not in expected)]
    if extra:
        raise ConversionError(
            f"{path}: tensor(s) that qllama has no use for, so the model is not what its "
            f"metadata says: {listed(extra)}"
        )
    missing = [name for name in expected if name not in found]
    if missing:
        raise ConversionError(f"{path}: missing tensor(s): {listed(missing)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ConversionError(
                f"{path}: tensor {name}: expected shape {shape}, found {found[name]}"
            )
