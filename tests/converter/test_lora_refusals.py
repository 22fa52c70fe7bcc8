"""Adapters that cannot be merged rightly: each is refused in one line that names what is wrong."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from lora_sample import (
    CONFIG,
    Q_PROJ,
    TARGETS,
    base_model,
    low_rank,
    projections,
    random_array,
    write_adapter,
)

from converter.lora import with_adapter
from converter.peft_config import read_adapter_config
from qllama.errors import ConversionError, UnsupportedModelError


def head_and_updates():
    return {
        **low_rank(projections(*TARGETS)),
        "base_model.model.lm_head.weight": random_array(40, 32),
    }


@pytest.mark.parametrize(
    ("arrays", "fields", "message"),
    [
        (
            low_rank(projections(*TARGETS, "o_proj")),
            {},
            r"update of model\.layers\.0\.self_attn\.o_proj, which target_modules",
        ),
        (
            low_rank(projections("q_proj")),
            {},
            r"lacks lora_A and lora_B of model\.layers\.0\.self_attn\.v_proj and 1 more",
        ),
        (
            low_rank({"model.layers.2.self_attn.q_proj": (32, 32)}),
            {},
            r"the model has no tensor model\.layers\.2\.self_attn\.q_proj\.weight;",
        ),
        (
            low_rank({"transformer.h.0.attn.c_attn": (96, 32)}),
            {"target_modules": ["c_attn"]},
            r"the model has no tensor transformer\.h\.0\.attn\.c_attn\.weight;",
        ),
        (
            low_rank({**projections(*TARGETS), Q_PROJ: (64, 32)}),
            {},
            r"q_proj\.lora_B\.weight'.*: the update has shape \(64, 32\), the model's .*\(32, 32\)",
        ),
        (
            low_rank({**projections(*TARGETS), Q_PROJ: (32, 16)}),
            {},
            r"the update has shape \(32, 16\), the model's .* \(32, 32\)",
        ),
        (
            low_rank({"model.layers.0.self_attn.qkv_proj": (96, 32)}),
            {"target_modules": ["qkv_proj"]},
            r"qkv_proj\.lora_B\.weight': expected 64 rows for this model, found 96",
        ),
        (
            {
                **low_rank(projections(*TARGETS)),
                "base_model.model.lm_head.weight": random_array(41, 32),
            },
            {},
            "the embedding has 40 tokens, the head 41; the adapter must hold both",
        ),
        (
            {"base_model.model.lm_head.weight": random_array(39, 32)},
            {},
            r"expected shape \(40, 32\) of the model's lm_head\.weight, found \(39, 32\)",
        ),
        (
            {"base_model.model.model.norm.weight": random_array(33)},
            {},
            r"expected shape \(32,\) of the model's model\.norm\.weight, found \(33,\)",
        ),
        (
            {
                "base_model.model.norm.weight": random_array(32),
                "base_model.model.model.norm.weight": random_array(32),
            },
            {},
            r"changes model\.norm\.weight twice, under two names",
        ),
        (
            low_rank({Q_PROJ: (32, 32), Q_PROJ.removeprefix("model."): (32, 32)}),
            {},
            r"changes model\.layers\.0\.self_attn\.q_proj\.weight twice",
        ),
        (
            {"base_model.model.score.weight": random_array(2, 32)},
            {"task_type": "SEQ_CLS"},
            r"the model has no tensor score\.weight",
        ),
        (
            head_and_updates(),
            {"modules_to_save": ["lm_head", "norm"]},
            r"lacks model\.layers\.0\.input_layernorm\.weight, although modules_to_save.*'norm'",
        ),
    ],
)
def test_lora_that_does_not_fit_is_refused_by_name(tmp_path, arrays, fields, message):
    directory = write_adapter(tmp_path / "a", arrays, **fields)
    with pytest.raises((ConversionError, UnsupportedModelError), match=message) as caught:
        with_adapter(base_model(), directory, 1.0)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)


def test_lora_scale_with_replaced_tensors_is_refused(tmp_path):
    directory = write_adapter(tmp_path / "a", head_and_updates(), modules_to_save=["lm_head"])
    with pytest.raises(ConversionError, match=r"replaces lm_head\.weight whole.* 0\.5 "):
        with_adapter(base_model(), directory, 0.5)


def test_lora_scale_with_trained_biases_of_updated_modules_is_refused(tmp_path):
    source = base_model(replace(CONFIG, attention_bias=True))
    arrays = low_rank(projections("q_proj"))
    arrays[f"base_model.model.{Q_PROJ}.base_layer.bias"] = random_array(32)
    directory = write_adapter(tmp_path / "a", arrays, target_modules=["q_proj"], bias="all")
    with pytest.raises(ConversionError, match=rf"replaces {Q_PROJ}\.bias whole.* 0\.5 "):
        with_adapter(source, directory, 0.5)


def test_lora_scale_with_a_saved_base_layer_is_taken(tmp_path):
    arrays = low_rank({"lm_head": (40, 32)})
    arrays["base_model.model.lm_head.base_layer.weight"] = random_array(40, 32)
    directory = write_adapter(tmp_path / "a", arrays, target_modules=["lm_head"])
    with_adapter(base_model(), directory, 0.5)


def test_lora_that_replaces_what_an_earlier_one_changed_is_refused(tmp_path):
    directory = write_adapter(tmp_path / "a", head_and_updates(), modules_to_save=["lm_head"])
    once = with_adapter(base_model(), directory, 1.0)
    with pytest.raises(ConversionError, match=r"replaces lm_head\.weight, which an adapter before"):
        with_adapter(once, directory, 1.0)


A_NAME = f"base_model.model.{Q_PROJ}.lora_A.weight"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"base_model.model.x.lora_magnitude_vector": random_array(4)}, "x.*: DoRA"),
        ({"base_model.model.x.lora_B.bias": random_array(4)}, "x.*: biases of lora_B"),
        (
            {"base_model.model.e.token_adapter.trainable_tokens_delta": random_array(4, 4)},
            "e.*: single trained rows",
        ),
        ({"model.norm.weight": random_array(32)}, r"model\.norm\.weight: expected names that"),
        ({"base_model.model.x.lora_A.default.weight": random_array(8, 4)}, "expected names that"),
        ({"base_model.model.lm_head.original_module.weight": random_array(2, 2)}, "expected names"),
        ({"base_model.model.lm_head.weight": random_array(2, 2, 2)}, r"at most 2 dim.*\(2, 2, 2\)"),
        ({"base_model.model.x.lora_A.weight": random_array(8, 4)}, "x: .*found only one of them"),
        ({A_NAME: random_array(4, 32)}, r"lora_A.*rank 8 that adapter_config\.json.*\(4, 32\)"),
        ({A_NAME: random_array(8)}, r"lora_A.*rank 8 .*\(8,\)"),
        ({A_NAME: np.zeros((0, 32), np.float32)}, r"lora_A.*found \(0, 32\); shards"),
        ({A_NAME: np.zeros((8, 32), np.int8)}, "lora_A.* is of type int8, expected one of"),
        (
            {A_NAME: np.zeros((8, 32), ml_dtypes.float8_e4m3fn)},
            "lora_A.* is of type float8_e4m3fn, expected one of",
        ),
    ],
)
def test_lora_weight_file_with_anything_else_is_refused(tmp_path, extra, message):
    arrays = {**low_rank(projections(*TARGETS)), **extra}
    directory = write_adapter(tmp_path / "a", arrays)
    with pytest.raises((ConversionError, UnsupportedModelError), match=message) as caught:
        with_adapter(base_model(), directory, 1.0)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)


def test_lora_weight_file_without_tensors_is_refused(tmp_path):
    directory = write_adapter(tmp_path / "a", {})
    with pytest.raises(ConversionError, match="holds no tensors"):
        with_adapter(base_model(), directory, 1.0)


def test_lora_without_a_weight_file_is_refused(tmp_path):
    directory = write_adapter(tmp_path / "a")
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(
        ConversionError, match=r"expected adapter_model\.safetensors or adapter_mod"
    ):
        with_adapter(base_model(), directory, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_lora_factor_that_is_not_finite_is_named_when_it_is_read(tmp_path, bad):
    arrays = low_rank(projections(*TARGETS))
    arrays[A_NAME][3, 5] = bad
    merged = with_adapter(base_model(), write_adapter(tmp_path / "a", arrays), 1.0)
    tensor = merged.tensors[f"{Q_PROJ}.weight"]
    assert not np.isfinite(tensor.read(0, 16)).all()
    assert "adapter_model.safetensors" in tensor.where


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"peft_type": "ABSENT"}, "peft_type = None"),
        ({"use_dora": True}, "use_dora = True: the adapter has DoRA"),
        ({"lora_bias": True}, "lora_bias = True: "),
        ({"use_qalora": True}, "use_qalora = True: "),
        ({"enable_lora": [True, False, True]}, r"enable_lora = \[True, False, True\]: "),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication = "),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices = \[3\]: "),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters = "),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens = "),
        ({"megatron_config": {"a": 1}}, "megatron_config = "),
        ({"ensure_weight_tying": True}, "ensure_weight_tying = True: "),
        ({"monteclora_config": {"n": 1}}, "monteclora_config = .* does not know this field"),
        ({"new_in_2031": 3}, "new_in_2031 = 3: qllama does not know this field"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights = 'pissa_niter_16'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
        ({"r": 0}, "r: expected a positive integer, found 0"),
        ({"r": "8"}, "r: expected an integer, found '8'"),
        ({"r": "ABSENT"}, "r is missing"),
        ({"lora_alpha": "ABSENT"}, "lora_alpha is missing"),
        ({"lora_alpha": float("nan")}, "lora_alpha: expected a finite number, found nan"),
        ({"rank_pattern": {"q_proj": -1}}, r"rank_pattern\.q_proj: expected a positive integer"),
        ({"rank_pattern": {"q_(proj": 1}}, "rank_pattern: expected a regular expression"),
        ({"rank_pattern": [1]}, "rank_pattern: expected an object"),
        ({"alpha_pattern": {"q_proj": "2"}}, r"alpha_pattern\.q_proj: expected a finite number"),
        ({"target_modules": "q_(proj"}, "target_modules: expected a regular expression"),
        ({"target_modules": [1]}, "target_modules: expected names"),
        ({"modules_to_save": ["("]}, "modules_to_save: expected a regular expression"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform: expected integers"),
    ],
)
def test_adapter_config_field_that_cannot_be_merged_is_named(tmp_path, fields, message):
    directory = write_adapter(tmp_path / "a", **fields)
    expected = rf"adapter_config\.json: {message}"
    with pytest.raises((ConversionError, UnsupportedModelError), match=expected) as caught:
        read_adapter_config(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"LORA"'])
def test_adapter_config_that_is_no_object_is_refused(tmp_path, content):
    directory = write_adapter(tmp_path / "a")
    (directory / "adapter_config.json").write_bytes(content)
    with pytest.raises(ConversionError, match=r"adapter_config\.json: expected (a )?JSON"):
        read_adapter_config(directory)


def test_adapter_config_missing_says_what_the_path_is(tmp_path):
    (tmp_path / "run").mkdir()
    write_adapter(tmp_path / "run" / "checkpoint-500")
    with pytest.raises(ConversionError, match=r"run: not a PEFT.*there is one in checkpoint-500$"):
        read_adapter_config(tmp_path / "run")
    with pytest.raises(ConversionError, match=r"absent: no such adapter directory$"):
        read_adapter_config(tmp_path / "absent")
    (tmp_path / "lora.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConversionError, match=r"lora\.gguf: a file, expected the directory"):
        read_adapter_config(tmp_path / "lora.gguf")
