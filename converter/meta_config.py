"""Meta's `params.json`, said in the words of Hugging Face's `config.json`.

Owns what its fields mean and what they leave unsaid: the context length and the stretching
of rotary frequencies, which Meta's releases tell by nothing but the model's size. Each field
is used, known to change nothing, or refused by name. Mistral's releases have the same
layout with fields of their own. Reads no file.

Reference: `ModelArgs` and `FeedForward` of meta-llama/llama-models (`models/llama3`),
`convert_llama_weights_to_hf.py` and `convert_mistral_weights_to_hf.py` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.fields import Fields, Refused
from qllama.errors import UnsupportedModelError

__all__ = ["hugging_face_values", "is_params"]

_USED = frozenset(
    {
        "dim",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "hidden_dim",
        "multiple_of",
        "ffn_dim_multiplier",
        "norm_eps",
        "vocab_size",
        "rope_theta",
        "use_scaled_rope",
        "sliding_window",
        "max_seq_len",
    }
)

# Sizes a cache.
_IGNORED = frozenset({"max_batch_size"})
_EXPERTS, _VISION = "a mixture of experts", "a vision model"
_REFUSED: Refused = {
    # These occur with the one value that changes nothing.
    "model_type": (("transformer",), "expected 'transformer'"),
    "use_biases": ((False,), "expected False"),
    "causal": ((True,), "expected True"),
    **{
        key: ((0, -1), f"the checkpoint has {asked}")
        for key, asked in {
            "moe": _EXPERTS,
            "moe_args": _EXPERTS,
            "quantization_args": (
                "weights that Meta quantized (SpinQuant, QLoRA); convert its bf16 release"
            ),
            "lora_args": "weights with LoRA matrices inside (QLoRA); convert Meta's bf16 release",
            "lora": "weights with LoRA matrices inside",
            "vision_chunk_size": _VISION,
            "vision_model": _VISION,
            "vision_encoder": _VISION,
        }.items()
    },
}
_UNKNOWN = "qllama does not know this field, and might run the model wrongly"

# Width of a model with `use_scaled_rope` to the factor it was trained with, and its name. The
# published configurations on Hugging Face say so; params.json does not.
_SCALED = {
    2048: (32.0, "Llama 3.2 1B"),
    3072: (32.0, "Llama 3.2 3B"),
    4096: (8.0, "Llama 3.1 8B"),
    8192: (8.0, "Llama 3.1 and 3.3 70B"),
    16384: (8.0, "Llama 3.1 405B"),
}
_MAX_SIZE = 2**31 - 1
_LLAMA_3_CONTEXT = 8192
_SCALED_CONTEXT = 131072
_MISTRAL_CONTEXT = 32768
# Base of the rotary frequencies to the context length; 10000 is Llama 1 or 2.
_CONTEXTS = {500000.0: _LLAMA_3_CONTEXT, 1000000.0: 16384}  # Llama 3, Code Llama


def is_params(values: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a `params.json` rather than a `config.json`."""
    return "dim" in values or isinstance(values.get("model"), Mapping)


def hugging_face_values(
    where: Path, params: Mapping[str, Any], vocab_size: int, *, tied: bool
) -> dict[str, Any]:
    """Return the `config.json` that says what a `params.json` means.

    Parameters
    ----------
    where : Path
        The file, for messages.
    params : mapping
        What it holds.
    vocab_size : int
        Rows of the embedding, for the files that say -1 or nothing.
    tied : bool
        Whether the output matrix is the embedding again.

    Raises
    ------
    UnsupportedModelError
        For a field or value that qllama does not compute; names it.
    ConversionError
        For one that is missing or of the wrong type.
    """
    # Early tools wrote all of it one level down.
    fields = Fields(where, params).inner("model") if "dim" not in params else Fields(where, params)
    fields.check_known(_USED | _IGNORED, _REFUSED, _UNKNOWN, neutral=())
    width, heads = _size(fields, "dim"), _size(fields, "n_heads")
    theta = _theta(fields)
    window = _window(fields)
    declared = fields.integer("vocab_size", -1)
    return {
        "model_type": "llama" if window is None else "mistral",
        "hidden_size": width,
        "num_hidden_layers": fields.integer("n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("n_kv_heads", heads),
        "head_dim": fields.integer("head_dim", width // heads),
        "intermediate_size": _intermediate_size(fields, width),
        "vocab_size": vocab_size if declared < 0 else declared,
        "rms_norm_eps": fields.number("norm_eps"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(fields, width),
        "max_position_embeddings": _context(fields, theta),
        "sliding_window": window,
        "tie_word_embeddings": tied,
    }


def _size(fields: Fields, key: str, default: int | None = None) -> int:
    value = fields.integer(key, default)
    if not 1 <= value <= _MAX_SIZE:
        fields.mistyped(key, f"1 to {_MAX_SIZE}")
    return value


def _theta(fields: Fields) -> float:
    mistral = "hidden_dim" in fields and "sliding_window" not in fields
    if mistral and "rope_theta" not in fields:
        raise UnsupportedModelError(
            f"{fields.where}: rope_theta is missing, and Mistral's tools disagree on its default; "
            "give the model's config.json as --config"
        )
    return fields.number("rope_theta", 10000.0)


def _window(fields: Fields) -> int | None:
    value = fields.values.get("sliding_window")
    # Some releases have it as a string.
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return None if value is None else fields.integer("sliding_window")


def _intermediate_size(fields: Fields, width: int) -> int:
    if "hidden_dim" in fields:
        return fields.integer("hidden_dim")
    multiple = _size(fields, "multiple_of", 256)
    wanted = fields.number("ffn_dim_multiplier", 1.0) * int(8 * width / 3)
    if not 1 <= wanted <= _MAX_SIZE:
        fields.mistyped("ffn_dim_multiplier", f"a positive factor on {int(8 * width / 3)}")
    return -(-int(wanted) // multiple) * multiple


def _rope_scaling(fields: Fields, width: int) -> dict[str, Any] | None:
    if not fields.flag("use_scaled_rope", False):
        return None
    if width not in _SCALED:
        known = ", ".join(f"{name} ({known})" for known, (_, name) in _SCALED.items())
        fields.refuse(
            "use_scaled_rope",
            f"the factor is known for {known}, not for dim {width}; "
            "give the model's config.json as --config",
        )
    return {
        "rope_type": "llama3",
        "factor": _SCALED[width][0],
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": _LLAMA_3_CONTEXT,
    }


def _context(fields: Fields, theta: float) -> int:
    if "max_seq_len" in fields:
        return fields.integer("max_seq_len")
    if "hidden_dim" in fields:
        return _MISTRAL_CONTEXT
    if fields.flag("use_scaled_rope", False):
        return _SCALED_CONTEXT
    if theta in _CONTEXTS:
        return _CONTEXTS[theta]
    # The second generation has another epsilon, as the largest of the first has; that one
    # shares no key and value heads.
    first = fields.number("norm_eps") != 1e-5 or (
        fields.integer("dim") == 8192 and "n_kv_heads" not in fields
    )
    return 2048 if first else 4096
