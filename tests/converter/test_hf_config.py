"""`config.json` to ModelConfig: every key used, harmless, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_hf import LLAMA, config_of, shapes_of

from converter.hf_config import FAMILIES, config_from_hugging_face
from qllama.config import ModelConfig
from qllama.errors import ConversionError, UnsupportedModelError

PATH = Path("config.json")
LLAMA_3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def config(*without: str, names=None, **changes) -> ModelConfig:
    """Read LLAMA's values, changed, without some keys; `names` default to those that fit."""
    values = {key: value for key, value in config_of(**changes).items() if key not in without}
    if names is None:
        names = shapes_of(config_of(**changes))
    return config_from_hugging_face(PATH, values, names)


def test_hf_config_minimal_llama_takes_the_defaults_of_transformers():
    found = config("num_key_value_heads", "rope_theta", "tie_word_embeddings", "hidden_act")
    assert found == ModelConfig(
        model_type="llama",
        vocab_size=270,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
    )


def test_hf_config_every_used_key_reaches_its_field():
    found = config(
        head_dim=32,
        hidden_act="swish",
        rope_theta=5e5,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
    )
    assert (found.num_key_value_heads, found.head_dim, found.hidden_act) == (2, 32, "silu")
    assert (found.rope_theta, found.tie_word_embeddings) == (5e5, True)
    assert found.attention_bias
    assert found.attention_output_bias
    assert found.mlp_bias


def test_hf_config_null_is_the_same_as_absent():
    nulls = dict.fromkeys(("head_dim", "num_key_value_heads", "rope_scaling", "mlp_bias", "new"))
    assert config(**nulls, names=shapes_of(LLAMA)) == config("num_key_value_heads")


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 4096}),
        ("qwen2", {"attention_bias": True}),
        ("qwen3", {"qk_norm": True, "head_dim": 128}),
        ("phi3", {}),
    ],
)
def test_hf_config_family_says_what_no_key_does(family, expected):
    values = ModelConfig.to_dict(config(model_type=family))
    plain = config().to_dict() | {"model_type": family}
    assert {key: value for key, value in values.items() if value != plain[key]} == expected


def test_hf_config_families_are_all_tested():
    assert set(FAMILIES) == {"llama", "mistral", "qwen2", "qwen3", "phi3"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [None, False, True])
def test_hf_config_head_is_tied_only_where_the_config_says_so(family, tied):
    shapes = shapes_of(config_of(model_type=family))
    for names in (shapes, shapes.keys() - {"lm_head.weight"}):
        found = config(model_type=family, tie_word_embeddings=tied, names=names)
        assert found.tie_word_embeddings == bool(tied)


@pytest.mark.parametrize(
    ("family", "changes", "window"),
    [
        ("llama", {"sliding_window": None}, None),
        ("mistral", {"sliding_window": 1000}, 1000),
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {"sliding_window": None, "layer_types": ["full_attention"] * 2}, None),
        ("phi3", {"sliding_window": 2047}, 2047),
        ("qwen2", {"sliding_window": 64}, None),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": False}, None),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True}, None),
        (
            "qwen2",
            {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2},
            None,
        ),
        ("qwen3", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0}, 64),
        (
            "qwen3",
            {
                "sliding_window": 64,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention"] * 2,
            },
            64,
        ),
        (
            "qwen3",
            {
                "sliding_window": 64,
                "use_sliding_window": True,
                "max_window_layers": 0,
                "layer_types": ["full_attention"] * 2,
            },
            None,
        ),
    ],
)
def test_hf_config_sliding_window_is_what_the_family_makes_of_it(family, changes, window):
    assert config(model_type=family, **changes).sliding_window == window


@pytest.mark.parametrize(
    ("family", "changes", "field"),
    [
        ("llama", {"sliding_window": 4096}, "sliding_window"),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 1},
            "max_window_layers",
        ),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            "layer_types",
        ),
    ],
)
def test_hf_config_window_of_some_layers_is_refused_by_name(family, changes, field):
    with pytest.raises(UnsupportedModelError, match=rf"^config\.json: {field} = "):
        config(model_type=family, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gemma2"},
        {"model_type": "mixtral"},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"quantization_config": {"bits": 4, "quant_method": "gptq"}},
        {"quantization": {"bits": 4, "group_size": 64}},
        {"partial_rotary_factor": 0.75},
        {"rope_interleaved": True},
        {"is_encoder_decoder": True},
        {"is_causal": False},
        {"attn_logit_softcapping": 50.0},
        {"num_local_experts": 8},
        {"something_new": 0.5},
    ],
)
def test_hf_config_what_would_change_results_is_refused_with_its_value(changes):
    ((field, value),) = changes.items()
    with pytest.raises(UnsupportedModelError) as caught:
        config(**changes, names=shapes_of(LLAMA))
    assert str(caught.value).startswith(f"config.json: {field} = {value!r}: ")
    assert "\n" not in str(caught.value)


def test_hf_config_what_changes_nothing_is_accepted():
    harmless = {
        "_model_name_or_path": "somewhere",
        "_name_or_path": "somewhere",
        "attention_dropout": 0.1,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "dtype": "bfloat16",
        "initializer_range": 0.02,
        "is_causal": True,
        "partial_rotary_factor": 1.0,
        "pretraining_tp": 2,
        "rope_interleaved": False,
        "something_new": False,
        "temperature": 0.6,
        "transformers_version": "4.31.0",
        "use_cache": True,
        "use_mrope": False,
    }
    assert config(**harmless) == config()


@pytest.mark.parametrize(
    "field",
    [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    ],
)
def test_hf_config_missing_field_is_named(field):
    with pytest.raises(ConversionError, match=rf"^config\.json: {field} is missing$"):
        config(field)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden_size": "64"}, "hidden_size: expected an integer, found '64'"),
        ({"hidden_size": True}, "hidden_size: expected an integer, found True"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps: expected a finite number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false"),
        ({"architectures": "LlamaForCausalLM"}, "architectures: expected a list of names"),
        ({"layer_types": "full_attention"}, "layer_types: expected a list of names"),
        ({"layer_types": [["full_attention"]]}, "layer_types: expected a list of names"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, but .* only 21 tensors"),
        ({"attention_bias": True}, "attention_bias = True: expected tensors"),
        ({"model_type": "qwen2"}, r"attention_bias = None: expected tensors .*q_proj\.bias"),
    ],
)
def test_hf_config_malformed_field_is_one_clear_line(changes, complaint):
    with pytest.raises(ConversionError, match=rf"^config\.json: {complaint}"):
        config(**changes, names=shapes_of(LLAMA))


def test_hf_config_biases_that_no_key_declares_are_refused():
    for name, key in (
        ("self_attn.q_proj", "attention_bias"),
        ("self_attn.o_proj", "attention_bias"),
        ("mlp.gate_proj", "mlp_bias"),
    ):
        names = [*shapes_of(LLAMA), f"model.layers.0.{name}.bias"]
        with pytest.raises(ConversionError, match=rf"{key} = None: expected no .*{name}\.bias"):
            config(names=names)


def test_hf_config_output_bias_that_is_missing_is_refused_unless_the_config_says_so():
    shapes = shapes_of(config_of(attention_bias=True))
    names = [name for name in shapes if not name.endswith("o_proj.bias")]
    complaint = r"attention_bias = True: expected tensors .*o_proj.*attention_output_bias: false"
    with pytest.raises(ConversionError, match=complaint):
        config(attention_bias=True, names=names)
    found = config(attention_bias=True, attention_output_bias=False, names=names)
    assert (found.attention_bias, found.attention_output_bias) == (True, False)


def test_hf_config_qwen2_has_no_output_bias_whatever_attention_bias_says():
    names = shapes_of(config_of(model_type="qwen2"))
    for flag in (False, True):
        found = config(model_type="qwen2", attention_bias=flag, names=names)
        assert (found.attention_bias, found.attention_output_bias) == (True, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"num_key_value_heads": 3},
        {"vocab_size": 2**40},
        {"hidden_size": -64},
        {"hidden_act": "gelu"},
        {"rms_norm_eps": 0},
        {"head_dim": 15},
        {"rope_scaling": {"type": "linear", "factor": -2.0}},
        {"rope_scaling": {**LLAMA_3, "type": "llama3", "original_max_position_embeddings": 0}},
        {"rope_scaling": {**LLAMA_3, "type": "llama3", "high_freq_factor": 1.0}},
        {"rope_scaling": {**YARN, "beta_fast": -1}},
        {"rope_scaling": {**YARN, "attention_factor": 0.0}},
        {"rope_scaling": {**YARN, "mscale": -100.0, "mscale_all_dim": 1.0}},
        {"rope_theta": 1.0},
        {"sliding_window": 2**70, "model_type": "mistral"},
    ],
)
def test_hf_config_absurd_value_is_refused_with_the_file_s_name(changes):
    with pytest.raises(UnsupportedModelError, match=r"^config\.json: \S") as caught:
        config(**changes, names=shapes_of(LLAMA))
    assert next(iter(changes)).split("_")[0] in str(caught.value)
