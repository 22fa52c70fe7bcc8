"""Names and shapes of tensors, and the refusal of any other set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from converter import tensor_map
from converter.tensor_map import check_tensors, from_gguf
from qllama.config import ModelConfig, RopeScaling
from qllama.errors import ConversionError
from qllama.tensors import expected_shapes

PATH = Path("model.gguf")
CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
)
PLAIN = {
    "model.embed_tokens.weight": (100, 64),
    "model.layers.0.input_layernorm.weight": (64,),
    "model.layers.0.self_attn.q_proj.weight": (128, 64),
    "model.layers.0.self_attn.k_proj.weight": (64, 64),
    "model.layers.0.self_attn.v_proj.weight": (64, 64),
    "model.layers.0.self_attn.o_proj.weight": (64, 128),
    "model.layers.0.post_attention_layernorm.weight": (64,),
    "model.layers.0.mlp.gate_proj.weight": (96, 64),
    "model.layers.0.mlp.up_proj.weight": (96, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 96),
    "model.norm.weight": (64,),
    "lm_head.weight": (100, 64),
}


def test_expected_shapes_plain_llama_lists_the_hugging_face_names_in_reading_order():
    assert list(expected_shapes(CONFIG).items()) == list(PLAIN.items())


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        (
            {"attention_bias": True},
            {
                "model.layers.0.self_attn.q_proj.bias": (128,),
                "model.layers.0.self_attn.k_proj.bias": (64,),
                "model.layers.0.self_attn.v_proj.bias": (64,),
            },
        ),
        ({"attention_output_bias": True}, {"model.layers.0.self_attn.o_proj.bias": (64,)}),
        (
            {"mlp_bias": True},
            {
                "model.layers.0.mlp.gate_proj.bias": (96,),
                "model.layers.0.mlp.up_proj.bias": (96,),
                "model.layers.0.mlp.down_proj.bias": (64,),
            },
        ),
        (
            {"qk_norm": True},
            {
                "model.layers.0.self_attn.q_norm.weight": (32,),
                "model.layers.0.self_attn.k_norm.weight": (32,),
            },
        ),
        ({"rope_scaling": RopeScaling("divisors")}, {"model.rope_divisors": (16,)}),
        ({"rope_scaling": RopeScaling("linear", 2.0)}, {}),
    ],
)
def test_expected_shapes_variant_adds_its_tensors(changes, added):
    assert expected_shapes(dataclasses.replace(CONFIG, **changes)) == {**PLAIN, **added}


def test_expected_shapes_tied_model_has_no_head():
    shapes = expected_shapes(dataclasses.replace(CONFIG, tie_word_embeddings=True))
    assert PLAIN.keys() - shapes.keys() == {"lm_head.weight"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("rope_freqs.weight", "model.rope_divisors"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("blk.12.attn_q.weight", "model.layers.12.self_attn.q_proj.weight"),
        ("blk.1.attn_k.bias", "model.layers.1.self_attn.k_proj.bias"),
        ("blk.1.attn_v.weight", "model.layers.1.self_attn.v_proj.weight"),
        ("blk.1.attn_output.bias", "model.layers.1.self_attn.o_proj.bias"),
        ("blk.1.attn_q_norm.weight", "model.layers.1.self_attn.q_norm.weight"),
        ("blk.1.attn_k_norm.weight", "model.layers.1.self_attn.k_norm.weight"),
        ("blk.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight"),
        ("blk.1.ffn_gate.weight", "model.layers.1.mlp.gate_proj.weight"),
        ("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight"),
        ("blk.1.ffn_down.bias", "model.layers.1.mlp.down_proj.bias"),
    ],
)
def test_from_gguf_known_name_is_translated(name, expected):
    assert from_gguf([name]) == ({expected: name}, [])


def test_from_gguf_no_two_names_have_the_same_translation():
    names = [
        *tensor_map._GGUF_NAMES,
        *(f"blk.0.{layer}.weight" for layer in tensor_map._GGUF_LAYER_NAMES),
    ]
    assert sorted(from_gguf(names)[0].values()) == sorted(names)


def test_from_gguf_superfluous_tensor_is_left_out():
    assert from_gguf(["blk.3.attn_rot_embd.weight"]) == ({}, [])


@pytest.mark.parametrize(
    "name",
    [
        "blk.01.attn_q.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.0.attn_q.scale",
        "output.bias",
        "model.norm.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ],
)
def test_from_gguf_unknown_name_is_kept_apart(name):
    assert from_gguf([name]) == ({}, [name])


def test_check_tensors_exact_set_passes():
    check_tensors(PATH, dict(reversed(PLAIN.items())), PLAIN)


def test_check_tensors_missing_tensor_is_named():
    found = {k: v for k, v in PLAIN.items() if "up_proj" not in k}
    with pytest.raises(ConversionError, match=r"missing tensor\(s\): model.*up_proj\.weight$"):
        check_tensors(PATH, found, PLAIN)


def test_check_tensors_leftover_tensor_is_named():
    with pytest.raises(ConversionError, match=r"no use for.*: output\.bias$"):
        check_tensors(PATH, {**PLAIN, "output.bias": (100,)}, PLAIN)


def test_check_tensors_unknown_name_that_looks_canonical_is_named():
    with pytest.raises(ConversionError, match=r"no use for.*: model\.norm\.weight$"):
        check_tensors(PATH, PLAIN, PLAIN, ["model.norm.weight"])


def test_check_tensors_many_leftovers_are_counted_in_one_line():
    extra = {f"blk.{i}.ffn_gate_exps.weight": (1, 1) for i in range(40)}
    with pytest.raises(ConversionError, match=r"and 35 more$"):
        check_tensors(PATH, {**PLAIN, **extra}, PLAIN)


def test_check_tensors_name_with_control_codes_is_quoted():
    with pytest.raises(ConversionError, match=r"'a\\nb\\x1b\[2J'") as caught:
        check_tensors(PATH, {**PLAIN, "a\nb\x1b[2J": (1,)}, PLAIN)
    assert str(caught.value).isprintable()


def test_check_tensors_wrong_shape_is_named():
    found = {**PLAIN, "model.norm.weight": (65,)}
    expected = r"model\.norm\.weight: expected shape \(64,\), found \(65,\)"
    with pytest.raises(ConversionError, match=expected):
        check_tensors(PATH, found, PLAIN)
