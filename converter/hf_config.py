"""The model config that a Hugging Face `config.json` describes.

Owns the families that qllama runs and what makes each its own: each key is used, known
to change nothing, or refused by name, because a model run without what it asks for would
be run wrongly. Reads no file.

Reference: the configuration and modeling modules of transformers 5.23 for `llama`,
`mistral`, `qwen2`, `qwen3` and `phi3`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter import hf_rope
from converter.fields import Fields
from converter.hf_keys import check_all_known
from converter.wording import quoted
from qllama.config import ModelConfig
from qllama.errors import ConversionError, UnsupportedModelError

__all__ = ["FAMILIES", "check_runnable", "config_from_hugging_face"]


@dataclass(frozen=True)
class _Family:
    """What a `model_type` means that no key says.

    Parameters
    ----------
    qkv_bias : bool
        q, k and v have biases, and o has none, whatever `attention_bias` says.
    qk_norm : bool
        See `ModelConfig`.
    head_dim : int or None
        Where the key is absent; None is `hidden_size` over the number of heads.
    window : str
        What `sliding_window` does: `none` (there is no such thing), `always`, or `declared`,
        only where `use_sliding_window` is true and from layer `max_window_layers` on.
    default_window : int or None
        Where the key is absent.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    window: str = "none"
    default_window: int | None = None


FAMILIES: dict[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(window="always", default_window=4096),
    "qwen2": _Family(qkv_bias=True, window="declared", default_window=4096),
    "qwen3": _Family(qk_norm=True, head_dim=128, window="declared", default_window=4096),
    "phi3": _Family(window="always"),
}
"""By `model_type`; `llama` covers Llama 1 to 3.3, TinyLlama, SmolLM, Yi and their kin."""

_USED = hf_rope.KEYS | {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "attention_output_bias",
    "mlp_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
}

_Q_BIAS, _O_BIAS = "self_attn.q_proj.bias", "self_attn.o_proj.bias"
_SILU = ("silu", "swish")
_FULL, _SLIDING = "full_attention", "sliding_attention"
_LAYERS_DIFFER = "layers that differ from each other are not supported"
# Of `max_window_layers`, in both families of Qwen.
_DEFAULT_FIRST_WINDOW = 28


def config_from_hugging_face(
    where: Path, values: Mapping[str, Any], names: Collection[str]
) -> ModelConfig:
    """Build the config of a model.

    Parameters
    ----------
    where : Path
        The file, for messages.
    values : mapping
        What `config.json` holds.
    names : collection of str
        The checkpoint's tensors in Hugging Face's names, with or without `model.`: they tell
        what no key does, which biases there are.

    Raises
    ------
    UnsupportedModelError
        For a family, key or value that qllama does not compute; names it.
    ConversionError
        For a key that is missing, of the wrong type, or at odds with the tensors.
    """
    config = Fields(where, values)
    family = _checked_family(config)
    hidden_size = config.integer("hidden_size")
    layers = config.integer("num_hidden_layers")
    heads = config.integer("num_attention_heads")
    if layers > len(names):
        # Before anything loops over layers that are not there.
        raise ConversionError(
            f"{where}: num_hidden_layers = {layers}, but the checkpoint has only {len(names)} "
            "tensors"
        )
    activation = config.text("hidden_act", "silu")
    theta, scaling = hf_rope.rope_from_hugging_face(config)
    attention_bias = family.qkv_bias or config.flag("attention_bias", False)
    # Transformers has no such key: of MindFormers, and for checkpoints that lack these alone.
    output_bias = config.flag("attention_output_bias", attention_bias and not family.qkv_bias)
    fields = {
        "model_type": config.text("model_type"),
        "vocab_size": config.integer("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": config.integer("intermediate_size"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": config.integer("num_key_value_heads", heads),
        "head_dim": _head_dim(config, family, hidden_size, heads),
        "max_position_embeddings": config.integer("max_position_embeddings"),
        "rms_norm_eps": config.number("rms_norm_eps"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        # The default of all five families.
        "tie_word_embeddings": config.flag("tie_word_embeddings", False),
        "attention_bias": _checked_bias(config, names, "attention_bias", _Q_BIAS, attention_bias),
        "attention_output_bias": _checked_bias(
            config, names, "attention_bias", _O_BIAS, output_bias
        ),
        "mlp_bias": _checked_bias(
            config, names, "mlp_bias", "mlp.gate_proj.bias", config.flag("mlp_bias", False)
        ),
        "qk_norm": family.qk_norm,
        "sliding_window": _sliding_window(config, family, layers),
        "hidden_act": "silu" if activation in _SILU else activation,
    }
    try:
        return ModelConfig.from_dict(fields)
    except UnsupportedModelError as e:
        raise UnsupportedModelError(f"{where}: {e}") from None


def check_runnable(where: Path, values: Mapping[str, Any]) -> None:
    """Refuse what a config alone tells that qllama does not run, before weights are fetched.

    Parameters
    ----------
    where, values
        As for `config_from_hugging_face`.

    Raises
    ------
    UnsupportedModelError, ConversionError
        As `config_from_hugging_face`.
    """
    config = Fields(where, values)
    _checked_family(config)
    hf_rope.rope_from_hugging_face(config)


def _checked_family(config: Fields) -> _Family:
    """Return the family of a model that generates text and has no key that is not known."""
    family = FAMILIES.get(config.text("model_type"))
    if family is None:
        config.refuse("model_type", f"qllama runs {', '.join(FAMILIES)}")
    # A classifier or an embedder has the same `model_type`.
    named = config.values.get("architectures", [])
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        config.mistyped("architectures", "a list of names")
    if named and not any(name.endswith("ForCausalLM") for name in named):
        config.refuse("architectures", "expected a model that generates text, ...ForCausalLM")
    check_all_known(config, _USED)
    return family


def _head_dim(config: Fields, family: _Family, hidden_size: int, heads: int) -> int:
    if heads < 1:
        config.refuse("num_attention_heads", "expected at least 1")
    default = family.head_dim
    if default is None and "head_dim" not in config and hidden_size % heads:
        config.refuse("num_attention_heads", f"does not divide hidden_size {hidden_size}")
    return config.integer("head_dim", default or hidden_size // heads)


def _checked_bias(
    config: Fields, names: Collection[str], key: str, suffix: str, expected: bool
) -> bool:
    """Return `expected`; that the tensors disagree is an error."""
    if any(name.endswith(f".{suffix}") for name in names) == expected:
        return expected
    advice = "; if o alone has none, say attention_output_bias: false in a copy given as --config"
    raise ConversionError(
        f"{config.where}: {key} = {quoted(config.values.get(key))}: expected "
        f"{'' if expected else 'no '}tensors ...{suffix} in this model, found "
        f"{'none' if expected else 'some'}{advice if expected and suffix == _O_BIAS else ''}"
    )


def _sliding_window(config: Fields, family: _Family, layers: int) -> int | None:
    """Return the window that all layers have, None where they see everything."""
    default = None if config.is_null("sliding_window") else family.default_window
    window = None
    if "sliding_window" in config or default is not None:
        window = config.integer("sliding_window", default)
    kinds = config.values.get("layer_types", [])
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        config.mistyped("layer_types", "a list of names")
    if family.window == "declared":
        first = config.integer("max_window_layers", _DEFAULT_FIRST_WINDOW)
        if not config.flag("use_sliding_window", False):
            window = None
        elif kinds:
            window = None if set(kinds) == {_FULL} else window
        elif first >= layers:
            window = None
        elif first > 0:
            config.refuse("max_window_layers", _LAYERS_DIFFER)
    elif family.window == "none" and window is not None:
        config.refuse("sliding_window", f"models of the type {config.text('model_type')} have none")
    if kinds and set(kinds) != {_FULL if window is None else _SLIDING}:
        config.refuse("layer_types", _LAYERS_DIFFER)
    return window
