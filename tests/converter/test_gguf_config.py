"""Metadata keys to ModelConfig: used, neutral, or refused by name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType

from converter.sources.gguf_config import config_from_gguf
from converter.sources.gguf_header import GgufHeader, GgufTensorInfo
from qllama.config import ModelConfig, RopeScaling
from qllama.errors import ConversionError, UnsupportedModelError

PATH = Path("model.gguf")

LLAMA = {
    "block_count": 2,
    "context_length": 2048,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def header(keys=None, tensors=("output.weight",), arch="llama", **others) -> GgufHeader:
    """Build the header of a model with the keys of LLAMA, changed by `keys` (None: removed)."""
    merged = {**LLAMA, **(keys or {})}
    metadata = {
        "general.architecture": arch,
        **{f"{arch}.{k}": v for k, v in merged.items() if v is not None},
        **others,
    }
    shapes = {"token_embd.weight": (100, 64), **dict.fromkeys(tensors, (1, 1))}
    # Only the embedding's shape and the names matter here.
    infos = {
        name: GgufTensorInfo(PATH, name, GGMLQuantizationType.F32, shape, 0, 0)
        for name, shape in shapes.items()
    }
    return GgufHeader(3, metadata, infos)


def config(*args, rope_divisors=False, **kwargs) -> ModelConfig:
    return config_from_gguf(PATH, header(*args, **kwargs), rope_divisors=rope_divisors)


def test_config_minimal_llama_takes_the_defaults_of_llama_cpp():
    assert config() == ModelConfig(
        model_type="llama",
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
    )


def test_config_every_used_key_reaches_its_field():
    found = config(
        {
            "attention.head_count_kv": 2,
            "attention.key_length": 32,
            "attention.value_length": 32,
            "rope.dimension_count": 32,
            "rope.freq_base": 5e5,
            "attention.sliding_window": 4096,
        }
    )
    assert (found.num_key_value_heads, found.head_dim) == (2, 32)
    assert (found.rope_theta, found.sliding_window) == (5e5, 4096)


def test_config_tensors_tell_of_biases_and_of_a_tied_head():
    tensors = ("blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.0.ffn_gate.bias")
    found = config(tensors=tensors)
    assert found.tie_word_embeddings
    assert found.attention_bias
    assert found.attention_output_bias
    assert found.mlp_bias
    plain = config()
    assert not any((plain.attention_bias, plain.attention_output_bias, plain.mlp_bias))
    assert not plain.tie_word_embeddings


def test_config_qwen3_has_normed_queries_and_keys():
    assert config(arch="qwen3").qk_norm
    assert not config(arch="qwen2").qk_norm
    assert config(arch="qwen2").model_type == "qwen2"


def test_config_list_of_equal_layers_is_one_number():
    keys = {"feed_forward_length": [96, 96], "attention.head_count_kv": [2, 2]}
    found = config(keys)
    assert (found.intermediate_size, found.num_key_value_heads) == (96, 2)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "linear"}, None),
        ({"rope.scaling.factor": 1.0}, None),
        ({"rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, RopeScaling("linear", 2.0)),
        ({"rope.scale_linear": 8.0}, RopeScaling("linear", 8.0)),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            RopeScaling("yarn", 4.0, original_max_position_embeddings=2048),
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 512,
                "rope.scaling.attn_factor": 0.5,
                "rope.scaling.yarn_beta_fast": 16.0,
                "rope.scaling.yarn_beta_slow": 2.0,
                "rope.scaling.yarn_ext_factor": 1.0,
                "rope.scaling.finetuned": True,
            },
            RopeScaling(
                "yarn",
                4.0,
                original_max_position_embeddings=512,
                attention_factor=0.5 * (0.1 * math.log(4.0) + 1.0),
                beta_fast=16.0,
                beta_slow=2.0,
            ),
        ),
    ],
)
def test_config_rope_scaling_keys_become_the_record(keys, expected):
    assert config(keys).rope_scaling == expected


def test_config_rope_divisors_become_the_record():
    assert config(rope_divisors=True).rope_scaling == RopeScaling("divisors")


@pytest.mark.parametrize(
    "keys",
    [
        {"expert_count": 0, "expert_used_count": 0},
        {"attention.causal": True},
        {"logit_scale": 1.0, "embedding_scale": 0.0},
        {"vocab_size": 99, "tensor_data_layout": "Meta AI original pth"},
        {"attention.sliding_window": 0},
    ],
)
def test_config_neutral_key_changes_nothing(keys):
    assert config(keys) == config()


UNSUPPORTED = {
    "an_unknown_key": ({"attention.novel": 1}, r"llama\.attention\.novel = 1: .*does not know"),
    "experts": ({"expert_count": 8}, r"llama\.expert_count = 8: .*mixture of experts"),
    "granite_logits": ({"logit_scale": 8.0}, r"llama\.logit_scale = 8\.0: .*Granite"),
    "granite_embedding": ({"embedding_scale": 12.0}, "embedding_scale"),
    "granite_residual": ({"residual_scale": 0.22}, "residual_scale"),
    "granite_attention": ({"attention.scale": 0.015}, r"attention\.scale"),
    "soft_capped_logits": ({"final_logit_softcapping": 30.0}, "soft-capped"),
    "not_causal": ({"attention.causal": False}, "not causal"),
    "part_of_head_rotated": ({"rope.dimension_count": 8}, "width of a head, 16"),
    "values_narrower_than_keys": ({"attention.value_length": 8}, "width of a head, 16"),
    "layers_that_differ": ({"feed_forward_length": [96, 64]}, r"\[96, 64\]: layers that differ"),
    "longrope": ({"rope.scaling.type": "longrope"}, "'longrope': expected none, linear or yarn"),
    "yarn_log": ({"rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
    "yarn_ext": (
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 2.0,
            "rope.scaling.yarn_ext_factor": 0.5,
        },
        "yarn_ext_factor",
    ),
    "attention_factor_without_yarn": ({"rope.scaling.attn_factor": 1.2}, "without yarn"),
    "more_layers_than_tensors": ({"block_count": 2**31 - 1}, "only 2 tensors"),
    "no_heads": ({"attention.head_count": 0}, "head_count = 0: expected at least 1"),
    "heads_that_do_not_divide": ({"attention.head_count_kv": 3}, "3 does not divide"),
    "no_width": ({"embedding_length": 0}, "hidden_size: expected 1"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_config_unsupported_key_is_refused_by_name(case):
    keys, expected = UNSUPPORTED[case]
    with pytest.raises(UnsupportedModelError, match=expected) as caught:
        config(keys)
    assert str(caught.value).startswith("model.gguf: ")


def test_config_long_value_and_odd_key_are_cut_and_quoted():
    with pytest.raises(UnsupportedModelError) as caught:
        config({"odd\n" * 99: "value" * 99})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", LLAMA)
def test_config_missing_key_is_named(key):
    with pytest.raises(ConversionError, match=f"llama.{key} is missing"):
        config({key: None})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("context_length", "2048", "an integer, found '2048'"),
        ("context_length", 2048.0, "an integer, found 2048.0"),
        ("block_count", True, "an integer, found True"),
        ("rope.freq_base", "1e4", "a finite number"),
        ("attention.layer_norm_rms_epsilon", math.nan, "a finite number, found nan"),
        ("rope.scaling.type", 1, "a string, found 1"),
    ],
)
def test_config_mistyped_key_is_named(key, value, expected):
    with pytest.raises(ConversionError, match=f"llama.{key}: expected {expected}"):
        config({key: value})


def test_config_rope_divisors_with_scaling_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        config({"rope.scaling.factor": 4.0}, rope_divisors=True)


@pytest.mark.parametrize("arch", ["gemma3", "granite", "llama4", "mistral3", ""])
def test_config_unknown_architecture_is_named(arch):
    with pytest.raises(UnsupportedModelError, match=f"architecture '{arch}'; qllama runs llama"):
        config(arch=arch)


def test_config_file_without_architecture_is_refused():
    with pytest.raises(ConversionError, match=r"general\.architecture"):
        config_from_gguf(PATH, GgufHeader(3, {}, {}), rope_divisors=False)


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_config_gguf_that_is_no_model_is_named(kind):
    with pytest.raises(UnsupportedModelError, match=kind):
        config(**{"general.type": kind})


def test_config_too_many_query_heads_a_key_value_head_are_refused():
    heads = {"attention.head_count_kv": 1, "attention.key_length": 2, "attention.value_length": 2}
    assert config({**heads, "attention.head_count": 64}).num_attention_heads == 64
    expected = r"config\.num_attention_heads: 65 query heads share .* at most 64"
    with pytest.raises(UnsupportedModelError, match=expected):
        config({**heads, "attention.head_count": 65})


def test_config_more_tokens_than_embedding_rows_is_refused():
    tokens = [str(i) for i in range(101)]
    with pytest.raises(ConversionError, match=r"101 tokens, token_embd\.weight only 100 rows"):
        config(**{"tokenizer.ggml.tokens": tokens})
