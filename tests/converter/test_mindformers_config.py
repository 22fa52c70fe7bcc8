"""MindFormers' YAML files: what Hugging Face's config of the same model says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from converter.hf_config import config_from_hugging_face
from converter.mindformers_config import hugging_face_values
from qllama.config import RopeScaling
from qllama.errors import ConversionError, UnsupportedModelError

WHERE = Path("model.yaml")

# The keys and values that matter of MindFormers' own predict_llama2_7b.yaml, in its style.
LLAMA_2_7B = """
run_mode: 'predict'
train_dataset: &train_dataset
  batch_size: 6
train_dataset_task:
  dataset_config: *train_dataset
model:
  model_config:
    type: LlamaConfig
    batch_size: 1 # add for increase predict
    seq_length: 4096
    hidden_size: 4096
    num_layers: 32
    num_heads: 32
    vocab_size: 32000
    multiple_of: 256
    rms_norm_eps: 1.0e-5
    bos_token_id: 1
    eos_token_id: 2
    pad_token_id: 0
    compute_dtype: "float16"
    use_past: True
    scaling_factor: 1.0 # The scale factor of seq length
    extend_method: "None" # support "None", "PI", "NTK"
    qkv_concat: False
    offset: 0
    checkpoint_name_or_path: "llama2_7b"
    top_k: 3
    do_sample: False
  arch:
    type: LlamaForCausalLM
"""

LLAMA_3_1_8B = """
model:
  model_config:
    type: LlamaConfig
    seq_length: 8192
    hidden_size: 4096
    num_layers: 32
    num_heads: 32
    n_kv_heads: 8
    vocab_size: 128256
    intermediate_size: 14336
    rms_norm_eps: 1.0e-5
    bos_token_id: 128000
    eos_token_id: [128001, 128009]
    max_position_embedding: 131072
    theta: 500000
    extend_method: "LLAMA3"
    scaling_factor:
     factor: 8.0
     low_freq_factor: 1.0
     high_freq_factor: 4.0
     original_max_position_embeddings: 8192
    fine_grain_interleave: 1
  arch:
    type: LlamaForCausalLM
"""


def values_of(text: str, **changes) -> dict:
    document = yaml.safe_load(text)
    document["model"]["model_config"] |= changes
    return hugging_face_values(WHERE, document)


def config_of(text: str, **changes):
    names = [f"tensor {i}" for i in range(300)] + ["lm_head.weight"]
    return config_from_hugging_face(WHERE, values_of(text, **changes), names)


def test_llama_2_7b():
    config = config_of(LLAMA_2_7B)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (4096, 32, 32000)
    assert (config.num_attention_heads, config.num_key_value_heads) == (32, 32)
    assert (config.head_dim, config.intermediate_size) == (128, 11008)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-5, 10000.0)
    assert config.max_position_embeddings == 4096
    assert config.rope_scaling is None
    assert not config.tie_word_embeddings
    assert not config.attention_bias


@pytest.mark.parametrize("qkv", [False, True])
@pytest.mark.parametrize("output", [False, True])
def test_biases_of_qkv_and_of_the_projection_have_a_key_each(qkv, output):
    values = values_of(LLAMA_2_7B, qkv_has_bias=qkv, attn_proj_has_bias=output)
    layer = "model.layers.0.self_attn."
    biases = [layer + "q_proj.bias"] * qkv + [layer + "o_proj.bias"] * output
    config = config_from_hugging_face(WHERE, values, [*map(str, range(300)), *biases])
    assert (config.attention_bias, config.attention_output_bias) == (qkv, output)
    if output:
        with pytest.raises(ConversionError, match=r"expected tensors .*o_proj\.bias"):
            config_from_hugging_face(WHERE, values, [*map(str, range(300)), *biases[:-1]])


def test_llama_3_1_8b():
    config = config_of(LLAMA_3_1_8B)
    assert (config.num_key_value_heads, config.intermediate_size) == (8, 14336)
    assert config.max_position_embeddings == 131072
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == RopeScaling(
        "llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    values = values_of(LLAMA_3_1_8B)
    assert (values["bos_token_id"], values["eos_token_id"]) == (128000, [128001, 128009])


def test_defaults_are_those_of_mindformers():
    values = hugging_face_values(WHERE, {"model": {"model_config": {"type": "LlamaConfig"}}})
    expected = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    assert {key: values[key] for key in expected} == expected
    assert not any("token" in key for key in values)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"hidden_size": 5120}, 13824),  # Llama 2 13B
        ({"hidden_size": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 28672),  # 70B
        ({"hidden_size": 4096, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),  # 3 8B
        # 14208 without the hundredth that MindFormers adds to the multiplier.
        ({"hidden_size": 4096, "multiple_of": 64, "ffn_dim_multiplier": 1.3}, 14336),
        ({"intermediate_size": 777}, 777),
    ],
)
def test_width_of_the_mlp_follows_mindformers_rule(changes, size):
    assert values_of(LLAMA_2_7B, **changes)["intermediate_size"] == size


def test_longer_of_the_two_lengths_is_the_context():
    changed = {"seq_length": 512, "max_position_embedding": 4096}
    assert config_of(LLAMA_2_7B, **changed).max_position_embeddings == 4096
    changed = {"seq_length": 8192, "max_position_embedding": 4096}
    assert config_of(LLAMA_2_7B, **changed).max_position_embeddings == 8192


def test_number_without_a_point_is_a_number():
    # YAML 1.1 reads 1e-6 as text.
    assert config_of(LLAMA_2_7B, rms_norm_eps="1e-6").rms_norm_eps == 1e-6


def test_position_interpolation_is_linear_scaling():
    config = config_of(LLAMA_2_7B, extend_method="PI", scaling_factor=4.0)
    assert config.rope_scaling == RopeScaling("linear", factor=4.0)
    config = config_of(LLAMA_2_7B, extend_method="linear", scaling_factor={"factor": 4.0})
    assert config.rope_scaling == RopeScaling("linear", factor=4.0)


def test_ntk_multiplies_the_base():
    config = config_of(LLAMA_2_7B, extend_method="NTK", scaling_factor=2.0)
    assert (config.rope_theta, config.rope_scaling) == (20000.0, None)


def test_yarn_amplitude_is_the_quotient_of_the_two_scales():
    scaling = {
        "factor": 40.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "original_max_position_embeddings": 4096,
    }
    found = config_of(LLAMA_2_7B, extend_method="YARN", scaling_factor=scaling).rope_scaling
    assert (found.rope_type, found.factor, found.original_max_position_embeddings) == (
        "yarn",
        40.0,
        4096,
    )
    log = 0.1 * math.log(40.0)
    assert found.attention_factor == pytest.approx((log + 1) / (0.5 * log + 1), rel=1e-12)


REFUSED = {
    "another config": ({"type": "QwenConfig"}, r"model_config\.type = 'QwenConfig'"),
    "dynamic NTK": ({"extend_method": "DYNAMIC_NTK"}, "extend_method = 'DYNAMIC_NTK'"),
    "experts": ({"moe_config": {"expert_num": 8}}, "moe_config = .*mixtures of experts"),
    "quantization": ({"quantization_config": {"quant_method": "rtn"}}, "a quantized checkpoint"),
    "adapter": ({"pet_config": {"pet_type": "lora"}}, "merge the adapter"),
    "unknown key": ({"use_alibi": True}, r"model_config\.use_alibi = True: qllama does not know"),
    "no multiple": ({"multiple_of": 0}, "multiple_of = 0: expected at least 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_qllama_does_not_compute_is_refused_by_key_and_value(name):
    changes, expected = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=f"^model.yaml: .*{expected}"):
        config_of(LLAMA_2_7B, **changes)


def test_another_architecture_with_the_same_config_is_refused():
    text = LLAMA_2_7B.replace("LlamaForCausalLM", "Baichuan13BForCausalLM")
    with pytest.raises(UnsupportedModelError, match=r"arch\.type = 'Baichuan13BForCausalLM'"):
        config_of(text)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_size": "wide"}, r"model_config\.hidden_size: expected an integer, found 'wide'"),
        ({"theta": True}, "theta: expected a finite number"),
        ({"extend_method": "LLAMA3", "scaling_factor": 8.0}, "scaling_factor: expected an object"),
        ({"moe_config": 3}, "moe_config: expected an object"),
    ],
)
def test_mistyped_value_is_an_error_that_names_the_key(changes, expected):
    with pytest.raises(ConversionError, match=f"^model.yaml: .*{expected}"):
        config_of(LLAMA_2_7B, **changes)


def test_file_of_another_kind_is_an_error():
    with pytest.raises(ConversionError, match=r"model_config\.type is missing"):
        hugging_face_values(WHERE, {"hidden_size": 1})
