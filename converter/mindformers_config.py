"""The `model.model_config` of a MindFormers YAML file, in Hugging Face's words.

Owns MindFormers' keys and defaults: each is used, known to change nothing, or refused by
name. What the words mean is `hf_config`'s.

Reference: mindformers 0.6 to 1.8, `models/llama/llama_config.py`, `modules/layers.py`
(`FreqsMgr`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.fields import OFF, Fields, Refused

__all__ = ["hugging_face_values"]

# LlamaConfig is that of other architectures too, Baichuan's with ALiBi among them.
_ARCHITECTURES = ("LlamaForCausalLM", "ParallelLlamaForCausalLM")

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

_USED = frozenset(
    {
        *_TOKEN_IDS,
        "attn_proj_has_bias",
        "extend_method",
        "ffn_dim_multiplier",
        "hidden_size",
        "intermediate_size",
        "max_position_embedding",
        "moe_config",
        "multiple_of",
        "n_kv_heads",
        "num_heads",
        "num_layers",
        "qkv_concat",
        "qkv_has_bias",
        "rms_norm_eps",
        "scaling_factor",
        "seq_length",
        "theta",
        "tie_word_embeddings",
        "type",
        "vocab_size",
    }
)

# Of training, of one machine's parallelism and kernels, or of choosing tokens.
_HARMLESS = frozenset(
    {
        "auto_map",
        "auto_register",
        "assistant_token_id",
        "attention_dropout_prob",
        "batch_size",
        "block_size",
        "boost_model_name",
        "calculate_per_token_loss",
        "checkpoint_name_or_path",
        "chunk_prefill",
        "compute_dtype",
        "compute_in_2d",
        "do_sample",
        "emb_dropout_prob",
        "embed_dropout_prob",
        "embedding_init_type",
        "fine_grain_interleave",
        "fused_rms_norm",
        "hidden_dropout_prob",
        "ignore_token_id",
        "init_method_std",
        "initializer_range",
        "input_sliced_sig",
        "is_dynamic",
        "is_flexible_shape",
        "layernorm_compute_dtype",
        "layernorm_compute_type",
        "llm_backend",
        "max_decode_length",
        "max_new_tokens",
        "num_block",
        "num_blocks",
        "offset",
        "parallel_config",
        "parallel_optimizer",
        "param_init_type",
        "pipeline_stage",
        "pp_interleave_num",
        "repetition_penalty",
        "residual_dtype",
        "return_hidden_states",
        "rmsnorm_compute_2d",
        "rotary_dtype",
        "softmax_compute_dtype",
        "softmax_compute_type",
        "temperature",
        "top_k",
        "top_p",
        "tp_x",
        "tp_y",
        "tp_z",
        "use_attn_mask_compression",
        "use_eod_attn_mask_compression",
        "use_flash_attention",
        "use_fused_swiglu",
        "use_kvcache_op",
        "use_paged_attention",
        "use_past",
        "use_past_shard",
        "use_prompt_flash_attention",
        "use_ring_attention",
        "use_rope_slice",
        "user_token_id",
        # In published files, but MindFormers' Llama does not read them.
        "kv_channels",
        "max_position_embeddings",
        "pretrain_seqlen",
        "rotary_emb_base",
        "rotary_pct",
    }
)


_QUANTIZED = "a quantized checkpoint; convert the one that it was made from"
_REFUSED: Refused = {
    "quant": (OFF, _QUANTIZED),
    "quant_config": (OFF, _QUANTIZED),
    "quantization_config": (OFF, _QUANTIZED),
    "pet_config": (OFF, "merge the adapter with MindFormers' transform_ckpt_lora first"),
}


def hugging_face_values(where: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a MindFormers configuration.

    Parameters
    ----------
    where : Path
        The file, for messages.
    document : mapping
        The whole of it.

    Returns
    -------
    dict
        As in a `config.json` of Hugging Face's `llama`.

    Raises
    ------
    UnsupportedModelError
        For a model, key or value that qllama does not compute; names it.
    ConversionError
        For a key that is missing or of the wrong type.
    """
    outer = Fields(where, document).inner("model")
    architecture = outer.inner("arch")
    if architecture.text("type", _ARCHITECTURES[0]) not in _ARCHITECTURES:
        architecture.refuse("type", f"expected {' or '.join(_ARCHITECTURES)}")
    model = outer.inner("model_config")
    # YAML takes 1e-5, without a point, for text; MindFormers' users write it so.
    model = Fields(
        where, {k: _number_of_text(v) for k, v in model.values.items()}, "model.model_config."
    )
    _check_keys(model)
    heads = model.integer("num_heads", 32)
    hidden_size = model.integer("hidden_size", 4096)
    context = model.integer("seq_length", 2048)
    context = max(context, model.integer("max_position_embedding", context))
    theta, scaling = _rope(model, model.number("theta", 10000.0))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.integer("vocab_size", 32000),
        "hidden_size": hidden_size,
        "intermediate_size": _intermediate_size(model, hidden_size),
        "num_hidden_layers": model.integer("num_layers", 32),
        "num_attention_heads": heads,
        "num_key_value_heads": model.integer("n_kv_heads", heads),
        "max_position_embeddings": context,
        "rms_norm_eps": model.number("rms_norm_eps", 1e-5),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": model.flag("tie_word_embeddings", False),
        "attention_bias": model.flag("qkv_has_bias", False),
        "attention_output_bias": model.flag("attn_proj_has_bias", False),
        # MindFormers' defaults fit one tokenizer; any tokenizer knows its own.
        **{key: model.values[key] for key in _TOKEN_IDS if key in model},
    }


def _number_of_text(value: Any) -> Any:
    if isinstance(value, str) and value[:1].isdigit():
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _check_keys(model: Fields) -> None:
    if model.text("type") != "LlamaConfig":
        model.refuse("type", "expected LlamaConfig")
    if model.inner("moe_config").integer("expert_num", 1) > 1:
        model.refuse("moe_config", "mixtures of experts are not supported")
    model.check_known(_USED | _HARMLESS, _REFUSED)


def _intermediate_size(model: Fields, hidden_size: int) -> int:
    """Return the width of the MLP, which MindFormers derives when it is not given."""
    if "intermediate_size" in model:
        return model.integer("intermediate_size")
    size = 4 * hidden_size
    if "ffn_dim_multiplier" in model:
        size = int((model.number("ffn_dim_multiplier") + 0.01) * size)
    multiple = model.integer("multiple_of", 256)
    if multiple < 1:
        model.refuse("multiple_of", "expected at least 1")
    return multiple * math.ceil(int(2 * size / 3) / multiple)


def _rope(model: Fields, theta: float) -> tuple[float, dict[str, Any] | None]:
    """Return the base of the rotary frequencies, and Hugging Face's `rope_scaling`."""
    method = model.text("extend_method", "None")
    if method == "None":
        return theta, None
    if method == "PI":
        return theta, {"rope_type": "linear", "factor": model.number("scaling_factor", 1.0)}
    if method == "NTK":
        return theta * model.number("scaling_factor", 1.0), None
    if method not in ("linear", "LLAMA3", "YARN"):
        model.refuse("extend_method", "expected None, PI, NTK, linear, LLAMA3 or YARN")
    scaling = model.inner("scaling_factor")
    if method == "LLAMA3":
        return theta, {"rope_type": "llama3", **scaling.values}
    factor = scaling.number("factor")
    if method == "linear":
        return theta, {"rope_type": "linear", "factor": factor}
    amplitudes = [
        0.1 * scaling.number(key) * math.log(factor) + 1.0 if factor > 1.0 else 1.0
        for key in ("mscale", "mscale_all_dim")
    ]
    return theta, {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": scaling.integer("original_max_position_embeddings"),
        "beta_fast": scaling.number("beta_fast"),
        "beta_slow": scaling.number("beta_slow"),
        "attention_factor": amplitudes[0] / amplitudes[1],
    }
