"""Adapters on small models: every tensor as PEFT would merge it, all else refused by name."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lora_sample import (
    CONFIG,
    Q_PROJ,
    TARGETS,
    TIED,
    ArrayTensor,
    base_model,
    low_rank,
    projections,
    random_array,
    update,
    values,
    write_adapter,
)
from tiny_gguf import HEADS, write_gguf

from converter.adapter import adapter_argument
from converter.lora import with_adapter
from converter.sources.gguf import GgufSource
from converter.sources.views import LowRankUpdate
from qllama.errors import ConversionError
from qllama.tensors import EMBEDDING, FINAL_NORM, HEAD, expected_shapes

# Float32: a sum of 8 products of numbers below 5, the scale and the base weight, 11 roundings.
ROUNDING = 11 * 2.0**-24 * 8 * 5 * 5


def check_merged(source, directory, expected, scale=1.0):
    """Compare the whole merged model: `expected` where given, else untouched."""
    before = values(source)
    merged = with_adapter(source, directory, scale)
    found = values(merged)
    assert list(found) == list(expected_shapes(merged.config))
    for name, array in found.items():
        wanted = expected.get(name)
        if wanted is None:
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        else:
            assert not np.array_equal(array, before.get(name)), f"{name} is unchanged"
            np.testing.assert_allclose(array, wanted, rtol=0, atol=ROUNDING * 4, err_msg=name)
            assert array.dtype == np.float32
    return merged


def merged_weights(source, arrays, scale, *names):
    before = values(source)
    return {
        f"{module}.weight": before[f"{module}.weight"] + update(arrays, module, scale)
        for module in projections(*names)
    }


def test_lora_adds_alpha_over_r_to_the_targets_alone(tmp_path):
    source = base_model()
    arrays = low_rank(projections(*TARGETS))
    expected = merged_weights(source, arrays, 16 / 8, *TARGETS)
    merged = check_merged(source, write_adapter(tmp_path / "a"), expected)
    assert merged.tokenizer == source.tokenizer
    assert merged.config == source.config


def test_lora_slabs_are_parts_of_the_whole(tmp_path):
    tensor = with_adapter(base_model(), write_adapter(tmp_path / "a"), 1.0).tensors[
        f"{Q_PROJ}.weight"
    ]
    whole = tensor.read(0, 32)
    for start, stop in ((0, 1), (5, 17), (16, 32)):
        np.testing.assert_allclose(
            tensor.read(start, stop), whole[start:stop], rtol=0, atol=ROUNDING
        )


@pytest.mark.parametrize("rank", [1, 7, 300])
def test_lora_update_of_many_columns_is_computed_in_blocks(rank):
    base, left = random_array(37, 5003), random_array(37, rank)
    right = random_array(rank, 5003)
    tensor = LowRankUpdate(ArrayTensor(base), ArrayTensor(left), ArrayTensor(right), 0.5, "adapter")
    assert tensor.where == "base, with adapter"
    expected = base + 0.5 * (left.astype(np.float64) @ right)
    # A sum of `rank` products below 5 * 5, each addition rounded.
    bound = (rank + 3) * 2.0**-24 * rank * 25
    np.testing.assert_allclose(tensor.read(0, 37), expected, rtol=0, atol=bound)
    assert tensor.shape == (37, 5003)


def test_lora_scale_of_the_user_multiplies(tmp_path):
    source = base_model()
    arrays = low_rank(projections(*TARGETS))
    expected = merged_weights(source, arrays, 2 * -0.25, *TARGETS)
    check_merged(source, write_adapter(tmp_path / "a"), expected, scale=-0.25)


def test_lora_rank_stabilized_scale_is_alpha_over_root_r(tmp_path):
    source = base_model()
    arrays = low_rank(projections(*TARGETS))
    expected = merged_weights(source, arrays, 16 / math.sqrt(8), *TARGETS)
    check_merged(source, write_adapter(tmp_path / "a", use_rslora=True), expected)


def test_lora_patterns_override_rank_and_alpha_by_module(tmp_path):
    source = base_model()
    other = "model.layers.1.self_attn.v_proj"
    arrays = low_rank(projections(*TARGETS))
    arrays |= low_rank({other: (16, 32)}, rank=4)
    expected = merged_weights(source, arrays, 16 / 8, *TARGETS)
    before = values(source)
    expected[f"{other}.weight"] = before[f"{other}.weight"] + update(arrays, other, 5 / 4)
    first = "model.layers.0.self_attn.v_proj"
    expected[f"{first}.weight"] = before[f"{first}.weight"] + update(arrays, first, 5 / 8)
    patterns = {
        "rank_pattern": {r"layers\.1\.self_attn\.v_proj": 4},
        "alpha_pattern": {"^q_proj": 99, "v_proj": 5},
    }
    check_merged(source, write_adapter(tmp_path / "a", arrays, **patterns), expected)


def test_lora_fan_in_fan_out_changes_nothing_for_linear_layers(tmp_path):
    plain = with_adapter(base_model(), write_adapter(tmp_path / "a"), 1.0)
    flagged = with_adapter(base_model(), write_adapter(tmp_path / "b", fan_in_fan_out=True), 1.0)
    name = f"{Q_PROJ}.weight"
    np.testing.assert_array_equal(values(flagged)[name], values(plain)[name])


def test_lora_two_adapters_add_up(tmp_path):
    source = base_model()
    arrays = low_rank(projections(*TARGETS))
    down = low_rank(projections("down_proj"))
    q = low_rank(projections("q_proj"), rank=2)
    first = with_adapter(source, write_adapter(tmp_path / "a"), 1.0)
    both = with_adapter(
        first,
        write_adapter(
            tmp_path / "b",
            {**down, **q},
            r=8,
            rank_pattern={"q_proj": 2},
            target_modules=["q_proj", "down_proj"],
        ),
        0.5,
    )
    name = f"{Q_PROJ}.weight"
    expected = values(source)[name] + update(arrays, Q_PROJ, 2) + update(q, Q_PROJ, 0.5 * 16 / 2)
    np.testing.assert_allclose(values(both)[name], expected, rtol=0, atol=ROUNDING * 8)
    assert [a["name"] for a in both.provenance["adapters"]] == ["a", "b"]
    assert [a["scale"] for a in both.provenance["adapters"]] == [1.0, 0.5]
    assert [p.name for p in both.files] == ["m.gguf"] + ["adapter_model.safetensors"] * 2


@pytest.mark.parametrize(
    ("fused", "parts"),
    [
        ("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj")),
        ("mlp.gate_up_proj", ("gate_proj", "up_proj")),
    ],
)
def test_lora_on_a_fused_module_reaches_its_parts(tmp_path, fused, parts):
    source = base_model()
    shapes = projections(*parts)
    rows = sum(shape[0] for module, shape in shapes.items() if ".0." in module)
    arrays = low_rank({f"model.layers.{i}.{fused}": (rows, 32) for i in range(2)})
    expected = {}
    for i in range(2):
        whole = update(arrays, f"model.layers.{i}.{fused}", 2)
        start = 0
        for part in parts:
            module = next(m for m in shapes if f".{i}." in m and m.endswith(part))
            stop = start + shapes[module][0]
            expected[f"{module}.weight"] = values(source)[f"{module}.weight"] + whole[start:stop]
            start = stop
    end = fused.rpartition(".")[2]
    check_merged(source, write_adapter(tmp_path / "a", arrays, target_modules=[end]), expected)


def test_lora_of_a_decoder_without_its_head_finds_the_layers(tmp_path):
    source = base_model()
    bare = {m.removeprefix("model."): shape for m, shape in projections(*TARGETS).items()}
    arrays = low_rank(bare)
    expected = {
        f"model.{m}.weight": values(source)[f"model.{m}.weight"] + update(arrays, m, 2)
        for m in bare
    }
    check_merged(source, write_adapter(tmp_path / "a", arrays), expected)


def embedding_update(rank=8):
    return {
        "base_model.model.model.embed_tokens.lora_embedding_A": random_array(rank, 40),
        "base_model.model.model.embed_tokens.lora_embedding_B": random_array(32, rank),
    }


def test_lora_on_the_embedding_is_transposed(tmp_path):
    source = base_model()
    arrays = embedding_update()
    a, b = (x.astype(np.float64) for x in arrays.values())
    expected = {EMBEDDING: values(source)[EMBEDDING] + 2 * (b @ a).T}
    directory = write_adapter(tmp_path / "a", arrays, target_modules=["embed_tokens"])
    check_merged(source, directory, expected)


def test_lora_modules_to_save_replace_whole_tensors(tmp_path):
    source = base_model()
    arrays = {
        "base_model.model.lm_head.weight": random_array(40, 32),
        "base_model.model.model.norm.weight": random_array(32),
        "base_model.model.lm_head.original_module.weight": random_array(40, 32, seed=9),
        "base_model.model.lm_head.modules_to_save.weight": random_array(40, 32),
    }
    directory = write_adapter(
        tmp_path / "a",
        {**low_rank(projections(*TARGETS)), **arrays},
        modules_to_save=["lm_head", "model.norm"],
    )
    expected = merged_weights(source, low_rank(projections(*TARGETS)), 2, *TARGETS)
    expected[HEAD] = arrays["base_model.model.lm_head.weight"]
    expected[FINAL_NORM] = arrays["base_model.model.model.norm.weight"]
    check_merged(source, directory, expected)


def test_lora_trained_biases_replace_the_model_s(tmp_path):
    source = base_model(replace(CONFIG, attention_bias=True))
    arrays = low_rank(projections("q_proj"))
    expected = merged_weights(source, arrays, 2, "q_proj")
    for i in range(2):
        bias = random_array(32, seed=i)
        arrays[f"base_model.model.model.layers.{i}.self_attn.q_proj.base_layer.bias"] = bias
        expected[f"model.layers.{i}.self_attn.q_proj.bias"] = bias
    directory = write_adapter(tmp_path / "a", arrays, target_modules=["q_proj"], bias="lora_only")
    check_merged(source, directory, expected)


def test_lora_saved_base_layer_is_replaced_and_then_updated(tmp_path):
    source = base_model()
    saved = random_array(40, 32, seed=8)
    arrays = low_rank({"lm_head": (40, 32)})
    expected = {HEAD: saved + update(arrays, "lm_head", 2)}
    arrays["base_model.model.lm_head.base_layer.weight"] = saved
    directory = write_adapter(tmp_path / "a", arrays, target_modules=["lm_head"])
    check_merged(source, directory, expected)


def test_lora_on_a_tied_head_leaves_the_embedding(tmp_path):
    source = base_model(TIED)
    arrays = low_rank({"lm_head": (40, 32)})
    expected = {HEAD: values(source)[EMBEDDING] + update(arrays, "lm_head", 2)}
    directory = write_adapter(tmp_path / "a", arrays, target_modules=["lm_head"])
    merged = check_merged(source, directory, expected)
    assert not merged.config.tie_word_embeddings


def test_lora_on_a_tied_embedding_leaves_the_head(tmp_path):
    source = base_model(TIED)
    arrays = embedding_update()
    a, b = (x.astype(np.float64) for x in arrays.values())
    before = values(source)[EMBEDDING]
    directory = write_adapter(tmp_path / "a", arrays, target_modules=["embed_tokens"])
    merged = with_adapter(source, directory, 1.0)
    assert not merged.config.tie_word_embeddings
    np.testing.assert_array_equal(values(merged)[HEAD], before)
    np.testing.assert_allclose(
        values(merged)[EMBEDDING], before + 2 * (b @ a).T, rtol=0, atol=ROUNDING * 4
    )


@pytest.mark.parametrize("same", [True, False])
def test_lora_tied_model_stays_tied_only_where_both_are_replaced_by_the_same(tmp_path, same):
    embedding = random_array(40, 32)
    head = embedding.copy()
    head[-1, -1] += 0 if same else 1
    arrays = {
        **low_rank(projections(*TARGETS)),
        "base_model.model.model.embed_tokens.weight": embedding,
        "base_model.model.lm_head.weight": head,
    }
    merged = with_adapter(base_model(TIED), write_adapter(tmp_path / "a", arrays), 1.0)
    assert merged.config.tie_word_embeddings == same
    assert (HEAD in merged.tensors) == (not same)
    np.testing.assert_array_equal(values(merged)[EMBEDDING], embedding)


def test_lora_on_a_gguf_merges_in_the_row_order_of_hugging_face(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    source = GgufSource(path)
    shapes = {
        name.removesuffix(".weight"): t.shape
        for name, t in source.tensors.items()
        if name.endswith(("q_proj.weight", "v_proj.weight"))
    }
    assert shapes["model.layers.1.self_attn.q_proj"] == (HEADS * 64, 256)
    arrays = low_rank(shapes)
    expected = {f"{m}.weight": values(source)[f"{m}.weight"] + update(arrays, m, 2) for m in shapes}
    merged = check_merged(source, write_adapter(tmp_path / "a", arrays), expected)
    assert merged.files[0] == path


def test_lora_updated_blocks_are_no_longer_carried(tmp_path):
    from gguf import GGMLQuantizationType as Ggml

    source = GgufSource(write_gguf(tmp_path / "tiny.gguf", matrices=Ggml.Q8_0))
    arrays = low_rank({f"model.layers.{i}.self_attn.q_proj": (256, 256) for i in range(2)})
    directory = write_adapter(tmp_path / "a", arrays, target_modules=["q_proj"])
    merged = with_adapter(source, directory, 1.0)
    assert merged.tensors[f"{Q_PROJ}.weight"].block_type is None
    assert merged.tensors["model.layers.0.self_attn.k_proj.weight"].block_type == "q8_0"


@pytest.mark.parametrize(
    ("trained_on", "provenance"),
    [
        ("meta-llama/Llama-3.2-1B", {"metadata": {"general.name": "Llama 3.2 1B"}}),
        ("unsloth/llama-3.2-1b-unsloth-bnb-4bit", {"name": "Llama-3.2-1B"}),
        ("huggyllama/llama-7b-hf", {"name": "llama_7b"}),
        ("/home/somebody/m/", {}),
        (None, {}),
    ],
)
def test_lora_on_a_model_of_that_name_says_nothing(tmp_path, trained_on, provenance, capsys):
    directory = write_adapter(tmp_path / "a", base_model_name_or_path=trained_on)
    with_adapter(base_model(**provenance), directory, 1.0)
    assert capsys.readouterr().err == ""


def test_lora_on_a_model_of_another_name_says_so_once(tmp_path, capsys):
    directory = write_adapter(tmp_path / "a", base_model_name_or_path="org/Mistral-7B-v0.1")
    with_adapter(base_model(name="Llama 3.2 1B"), directory, 1.0)
    said = capsys.readouterr().err
    assert "'org/Mistral-7B-v0.1'" in said
    assert "m.gguf" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("some/dir", ("some/dir", 1.0)),
        ("some/dir=0.5", ("some/dir", 0.5)),
        ("some=dir=-2", ("some=dir", -2.0)),
    ],
)
def test_adapter_argument_is_directory_and_scale(text, expected):
    assert adapter_argument(text) == (Path(expected[0]), expected[1])


def test_adapter_argument_directory_with_an_equals_sign_comes_first(tmp_path):
    (tmp_path / "a=2").mkdir()
    assert adapter_argument(str(tmp_path / "a=2")) == (tmp_path / "a=2", 1.0)


@pytest.mark.parametrize("scale", ["", "x", "nan", "inf", "1,5"])
def test_adapter_argument_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(ConversionError, match=f"--lora dir={scale}: expected a number"):
        adapter_argument(f"dir={scale}")
