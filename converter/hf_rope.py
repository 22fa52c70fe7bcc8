"""Rotary embeddings as a Hugging Face `config.json` describes them, old spelling and new.

Owns the keys of `rope_scaling` and `rope_parameters`. Transformers 5 merged the former and
`rope_theta` into the latter.

Reference: transformers 5.23, `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from typing import Any

from converter.fields import Fields

__all__ = ["KEYS", "rope_from_hugging_face"]

KEYS = frozenset(
    {"rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"}
)
"""Keys of `config.json` that are read here."""

_DEFAULT_THETA = 10000.0
_KEEP_ONE = "convert with --config and a copy of the file that keeps the right one"

# What each kind makes use of, beside its name and the base.
_KEYS_OF_KIND: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
}
_COMMON_KEYS = frozenset({"type", "rope_type", "rope_theta", "partial_rotary_factor"})


def rope_from_hugging_face(config: Fields) -> tuple[float, dict[str, Any] | None]:
    """Read the base of the rotary frequencies and how they are stretched.

    Parameters
    ----------
    config : Fields
        The whole of `config.json`.

    Returns
    -------
    float
        The base.
    dict or None
        The fields of a `RopeScaling`; None where frequencies are not stretched.

    Raises
    ------
    UnsupportedModelError
        For a kind or key that qllama does not compute, and for spellings that contradict
        each other.
    ConversionError
        For a value that is missing or of the wrong type.
    """
    if not config.values.get("rope_scaling"):
        return _of_spelling(config, "rope_parameters")
    found = _of_spelling(config, "rope_scaling")
    if config.values.get("rope_parameters") and _of_spelling(config, "rope_parameters") != found:
        config.refuse("rope_parameters", f"rope_scaling says something else; {_KEEP_ONE}")
    return found


def _of_spelling(config: Fields, key: str) -> tuple[float, dict[str, Any] | None]:
    rope = config.inner(key)
    theta = rope.number("rope_theta", config.number("rope_theta", _DEFAULT_THETA))
    if config.number("rope_theta", theta) != theta:
        config.refuse("rope_theta", f"{key} says {theta}; {_KEEP_ONE}")
    name = "rope_type" if "rope_type" in rope else "type"
    kind = rope.text(name, "default")
    if rope.text("type", kind) != kind:
        rope.refuse("type", f"rope_type says {kind}; {_KEEP_ONE}")
    if kind not in _KEYS_OF_KIND:
        rope.refuse(name, f"expected one of {', '.join(_KEYS_OF_KIND)}")
    for key in rope.values:
        if key not in _COMMON_KEYS and key not in _KEYS_OF_KIND[kind]:
            rope.refuse(key, f"qllama does not know this key of the type {kind}")
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        rope.refuse("partial_rotary_factor", "heads that are rotated in part are not supported")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, {"rope_type": kind, "factor": rope.number("factor")}
    context = config.integer("max_position_embeddings")
    # Transformers 5 lets the outer key win; the inner one is the usual place.
    original = config.integer(
        "original_max_position_embeddings",
        rope.integer("original_max_position_embeddings", context),
    )
    if kind == "yarn":
        return theta, _yarn(rope, context, original)
    return theta, {
        "rope_type": kind,
        "factor": rope.number("factor"),
        "low_freq_factor": rope.number("low_freq_factor"),
        "high_freq_factor": rope.number("high_freq_factor"),
        "original_max_position_embeddings": original,
    }


def _yarn(rope: Fields, context: int, original: int) -> dict[str, Any]:
    if not rope.flag("truncate", True):
        rope.refuse("truncate", "expected true")
    if original < 1:
        rope.mistyped("original_max_position_embeddings", "at least 1")
    factor = rope.number("factor", context / original)
    mscales = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    attention = None
    if "attention_factor" in rope:
        attention = rope.number("attention_factor")
    elif all(mscales):
        attention = _amplitude(factor, mscales[0]) / _amplitude(factor, mscales[1])
    elif factor <= 1.0:
        attention = 1.0
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": attention,
        # Zero stands for "not set".
        "beta_fast": rope.number("beta_fast", 32.0) or 32.0,
        "beta_slow": rope.number("beta_slow", 1.0) or 1.0,
    }


def _amplitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1.0 else 1.0
