"""MindSpore checkpoints of MindFormers' models: exactly their weights, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import raw_mindspore as raw
import yaml
from safetensors.numpy import save_file
from tiny_hf import (
    DTYPES,
    config_of,
    random_weights,
    shapes_of,
    write_json,
    write_repository,
    write_shards,
)
from tiny_mindspore import in_mindformers, mindformers_yaml, write

from converter.pipeline import convert
from converter.sources.options import SourceOptions
from converter.sources.registry import open_source
from converter.sources.stored import StoredArray
from qllama.errors import ConversionError, TokenizerError
from qllama.format.reader import QlmFile
from qllama.tensors import expected_shapes

LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# By what of Hugging Face's config they have; each with the same in MindFormers' words.
MODELS = {
    "llama": ({}, {}),
    "all heads alike": ({"num_key_value_heads": 4}, {"n_kv_heads": None}),
    "tied": ({"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
    "llama 3.1": (
        {"rope_theta": 5e5, "rope_scaling": LLAMA_3},
        {
            "theta": 500000,
            "extend_method": "LLAMA3",
            "scaling_factor": {k: v for k, v in LLAMA_3.items() if k != "rope_type"},
        },
    ),
}


@pytest.fixture
def weights():
    return random_weights(shapes_of(config_of()), "bf16")


@pytest.fixture
def tags(weights):
    return in_mindformers(weights)


def assert_weights(source, weights):
    assert list(source.tensors) == list(expected_shapes(source.config))
    for name, tensor in source.tensors.items():
        values = tensor.read(0, tensor.shape[0])
        np.testing.assert_array_equal(
            values, weights[name].astype(np.float32), strict=True, err_msg=name
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_mindspore_source_equals_hugging_face_s(tmp_path, name, dtype):
    hf_changes, mf_changes = MODELS[name]
    config = config_of(**hf_changes)
    weights = random_weights(shapes_of(config), dtype)
    data = raw.checkpoint(in_mindformers(weights), slice_bytes=5000)
    same = open_source(write_repository(tmp_path / "hf", config, weights))

    with_json = open_source(write(tmp_path / "json", data, config))
    path = write(tmp_path / "yaml", data, False)
    yaml_path = path.with_name("predict.yaml")
    yaml_path.write_text(yaml.safe_dump(mindformers_yaml(mf_changes)))
    with_yaml = open_source(path)
    for source in (with_json, with_yaml):
        assert source.config == same.config
        assert source.tokenizer == same.tokenizer
        assert source.files[0].name == "llama.ckpt"
        assert_weights(source, weights)


@pytest.mark.parametrize("slice_bytes", [1 << 29, 34560, 17281, 999])
def test_mindspore_sliced_tensors_are_whole(tmp_path, weights, tags, slice_bytes):
    assert_weights(open_source(write(tmp_path, raw.checkpoint(tags, slice_bytes))), weights)


def test_mindspore_unequal_slices_are_whole(tmp_path, weights, tags):
    data = b"".join(raw.array_split(tag, values, 3) for tag, values in tags.items())
    assert_weights(open_source(write(tmp_path, data)), weights)


def test_mindspore_conversion_equals_that_of_hugging_face_byte_for_byte(tmp_path, weights, tags):
    repository = write_repository(tmp_path / "hf", None, weights)
    path = write(tmp_path / "ms", raw.with_crc(raw.checkpoint(tags, 7000)))
    for preset in ("f32", "q4"):
        convert(repository, tmp_path / "hf.qlm", preset)
        convert(path, tmp_path / "ms.qlm", preset)
        with QlmFile.open(tmp_path / "hf.qlm") as hf, QlmFile.open(tmp_path / "ms.qlm") as ms:
            assert ms.tensors.keys() == hf.tensors.keys()
            for name in hf.tensors:
                np.testing.assert_array_equal(ms.data(name), hf.data(name), err_msg=name)
            assert ms.config == hf.config
            assert ms.provenance["format"] == "mindspore"
            assert ms.provenance["metadata"]["rope_layout"] == "half-split"


def test_sources_of_a_tied_head_that_is_stored_read_no_weights_to_open(tmp_path, monkeypatch):
    config = config_of(tie_word_embeddings=True)
    weights = random_weights(shapes_of(config_of()))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    data = raw.with_crc(raw.checkpoint(in_mindformers(weights)))
    paths = write(tmp_path / "ms", data, config), write_repository(tmp_path / "hf", config, weights)
    monkeypatch.setattr(StoredArray, "read_stored", lambda *_: pytest.fail("it was read"))
    for path in paths:
        assert open_source(path).config.tie_word_embeddings


def write_safetensors(directory, tags, shards, *, whole_index=False):
    """Write what MindSpore's `unified_safetensors` writes: shards, a map, hyperparameters."""
    weight_map = write_shards(directory, tags, shards)
    (directory / "model.safetensors.index.json").unlink()
    write_json(
        directory / "param_name_map.json",
        {"weight_map": weight_map} if whole_index else weight_map,
    )
    save_file({"epoch_num": np.array(3)}, directory / "hyper_param.safetensors")
    return directory


@pytest.mark.parametrize("whole_index", [True, False])
def test_mindspore_safetensors_are_known_by_their_names(tmp_path, weights, tags, whole_index):
    write_repository(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write_safetensors(tmp_path, tags, 2, whole_index=whole_index)
    source = open_source(tmp_path)
    assert source.provenance["format"] == "mindspore"
    assert [f.name for f in source.files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert_weights(source, weights)
    assert_weights(open_source(tmp_path / "param_name_map.json"), weights)


def test_mindspore_safetensors_take_the_options_of_the_format(tmp_path, weights, tags):
    write_repository(tmp_path)
    write_safetensors(tmp_path, tags, 2)
    save_file(tags, tmp_path / "model.safetensors")
    options = SourceOptions(format="mindspore", rope_layout="interleaved")
    source = open_source(tmp_path / "model.safetensors", options)
    assert source.provenance["metadata"]["rope_layout"] == "interleaved"


def test_mindspore_safetensors_of_ranks_are_explained(tmp_path, tags):
    for rank in (0, 1):
        directory = tmp_path / f"rank_{rank}"
        directory.mkdir()
        save_file(tags, directory / f"llama_rank_{rank}-1_10.safetensors")
    with pytest.raises(ConversionError, match="the files of 2 ranks"):
        open_source(tmp_path)


def test_mindspore_what_training_adds_is_skipped(tmp_path, weights, tags):
    data = raw.checkpoint(tags)
    data += raw.tensor("adam_m.lm_head.weight", np.ones((270, 64), np.float32))
    data += raw.tensor("global_step", np.ones(1, np.int32))
    data += raw.message("epoch_num", [0], "Int64", bytes(8))
    data += raw.message("loss_scale", [], "Float32", bytes(4))
    data += raw.message("random_op", [], "random_op", b"any bytes")
    data += raw.message("note", [0], "str", "hey".encode("utf-32-le"))
    assert_weights(open_source(write(tmp_path, data)), weights)


def test_mindspore_interleaved_rows_need_the_option(tmp_path, weights, tags):
    stored = dict(tags)
    for tag, values in tags.items():
        if ".wq." in tag or ".wk." in tag:
            heads = values.reshape(-1, 2, 8, 64)
            stored[tag] = heads.swapaxes(1, 2).reshape(values.shape)
    path = write(tmp_path, raw.checkpoint(stored))
    assert_weights(open_source(path, SourceOptions(rope_layout="interleaved")), weights)
    with pytest.raises(AssertionError, match="q_proj"):
        assert_weights(open_source(path), weights)


def test_mindspore_fused_matrices_need_the_option(tmp_path, weights, tags):
    stored = dict(tags)
    for i in range(2):
        layer = f"model.layers.{i}."
        parts = [stored.pop(f"{layer}attention.{w}.weight") for w in ("wq", "wk", "wv")]
        stored[f"{layer}attention.w_qkv.weight"] = np.concatenate(parts)
        parts = [stored.pop(f"{layer}feed_forward.{w}.weight") for w in ("w1", "w3")]
        stored[f"{layer}feed_forward.w_gate_hidden.weight"] = np.concatenate(parts)
    path = write(tmp_path, raw.checkpoint(stored))
    assert_weights(open_source(path, SourceOptions(fused_layout="stacked")), weights)
    with pytest.raises(ConversionError, match=r"is fused, .* give --fused-layout"):
        open_source(path)


def test_mindspore_other_config_and_tokenizer_are_the_user_s(tmp_path, tags):
    path = write(tmp_path / "m", raw.checkpoint(tags), config_of(rope_theta=5e5))
    other = write(tmp_path / "other", b"", config_of(rope_theta=7e5)).parent
    (path.parent / "tokenizer.json").unlink()
    assert open_source(path).config.rope_theta == 5e5
    options = SourceOptions(config=other / "config.json", tokenizer=other)
    source = open_source(path, options)
    assert source.config.rope_theta == 7e5
    assert source.tokenizer[0].bos_token_id == 1
    with pytest.raises(TokenizerError, match="--tokenizer"):
        _ = open_source(path).tokenizer


def test_mindspore_wrong_checksum_stops_the_conversion(tmp_path, tags):
    data = bytearray(raw.with_crc(raw.checkpoint(tags)))
    data[-40] ^= 1
    path = write(tmp_path / "m", bytes(data))
    with pytest.raises(ConversionError, match="CRC-32"):
        convert(path, tmp_path / "out.qlm", "f32")
    assert not (tmp_path / "out.qlm").exists()
