"""Keys of a Hugging Face `config.json` that qllama does not compute with.

Owns the lists: keys that change nothing, and keys that do unless they hold a neutral
value. What is on no list is refused unless its value switches nothing on.

Reference: transformers 5.23, `PreTrainedConfig`, and the keys in published repositories.
"""

from __future__ import annotations

from collections.abc import Collection

from converter.fields import Fields, Refused
from converter.sources.bitsandbytes import unreadable_quantization

__all__ = ["check_all_known"]

# What transformers itself writes about a file, a tokenizer or a way of running the model.
_REMARKS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_flash_attn_2_enabled",
        "_model_name_or_path",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "is_decoder",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "max_sequence_length",
        "model_max_length",
        "model_type",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tf_legacy_loss",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    }
)

# Of training alone.
_TRAINING = frozenset(
    {
        "attention_dropout",
        "embd_pdrop",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "label2id",
        "neftune_noise_alpha",
        "num_labels",
        "problem_type",
        "resid_pdrop",
        "router_aux_loss_coef",
    }
)

# How to choose tokens: old files have it here, new ones in generation_config.json.
_GENERATION = frozenset(
    {
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "min_p",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    }
)

_HARMLESS = _REMARKS | _TRAINING | _GENERATION

_QUANTIZED = ("quantization_config", "quantization", "compression_config")
_REFUSED: Refused = {
    key: (neutral, f"the model has {asked}, which qllama does not compute")
    for key, neutral, asked in (
        ("partial_rotary_factor", (1.0,), "heads that are rotated in part"),
        ("rope_interleaved", (False,), "neighbouring dimensions that are rotated together"),
        ("is_causal", (True,), "attention that is not causal"),
        ("is_encoder_decoder", (False,), "an encoder beside the decoder"),
        ("add_cross_attention", (False,), "attention to an encoder"),
        ("full_attn_mod", (1,), "layers that differ"),
        ("interpolate_factor", (1,), "interpolated positions"),
    )
}


def check_all_known(config: Fields, used: Collection[str]) -> None:
    """Refuse the first key that might change what the model computes.

    Parameters
    ----------
    config : Fields
        The whole of `config.json`.
    used : collection of str
        Keys that others read.

    Raises
    ------
    UnsupportedModelError
        Names the key and its value.
    """
    config.check_known({*used, *_HARMLESS, *_QUANTIZED}, _REFUSED)
    for key in _QUANTIZED:
        value = config.values.get(key)
        meaning = unreadable_quantization(value) if value else None
        if meaning is not None:
            config.refuse(key, f"{meaning}, which cannot be read; convert the float release")
