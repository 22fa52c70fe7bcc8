"""Hugging Face repositories whose weights are PyTorch files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_models import VALUES, random_tensors, write_bin
from torch_writer import View, save

from converter.sources.options import SourceOptions
from converter.sources.registry import open_source
from qllama.errors import ConversionError

TENSORS = random_tensors()


def check(source, expected=TENSORS):
    assert source.tensors.keys() == expected.keys()
    for name, array in expected.items():
        tensor = source.tensors[name]
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.read(0, len(array)), array.astype(np.float32), name)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_pytorch_repository_gives_every_tensor(tmp_path, n_shards):
    source = open_source(write_bin(tmp_path / "model", TENSORS, n_shards=n_shards))
    assert source.provenance["format"] == "pytorch"
    assert len(source.files) == n_shards
    assert source.config.num_key_value_heads == 4
    check(source)


def test_pytorch_index_and_file_are_taken_as_their_directory(tmp_path):
    directory = write_bin(tmp_path / "model", TENSORS, n_shards=2)
    check(open_source(directory / "pytorch_model.bin.index.json"))
    save(tmp_path / "alone.bin", TENSORS)
    options = SourceOptions(config=directory / "config.json")
    check(open_source(tmp_path / "alone.bin", options))


def test_pytorch_tied_head_is_dropped_and_early_names_are_taken(tmp_path):
    values = VALUES | {"tie_word_embeddings": True}
    tensors = random_tensors(values)
    embedding = tensors["model.embed_tokens.weight"]
    stored = {name.removeprefix("model."): array for name, array in tensors.items()}
    whole = View(embedding.reshape(-1), embedding.shape, (embedding.shape[1], 1))
    stored |= {"embed_tokens.weight": whole, "lm_head.weight": whole}
    stored["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    check(open_source(write_bin(tmp_path / "model", stored, values)), tensors)


def test_pytorch_matrix_stored_as_a_view_is_read_from_its_place(tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"
    rows, k = TENSORS[name].shape
    stored = TENSORS | {
        name: View(np.ascontiguousarray(TENSORS[name].T).reshape(-1), (rows, k), (1, rows))
    }
    check(open_source(write_bin(tmp_path / "model", stored)))


@pytest.mark.parametrize("strides", [(64, 1), (1, 64)])
def test_pytorch_weights_of_a_wrong_type_are_refused(tmp_path, strides):
    codes = View(np.zeros(64 * 64, np.int8), (64, 64), strides)
    name = "model.layers.1.self_attn.o_proj.weight"
    directory = write_bin(tmp_path / "model", TENSORS | {name: codes})
    with pytest.raises(ConversionError, match=f"pytorch_model.bin: tensor '{name}': .* found int8"):
        open_source(directory)


def test_pytorch_missing_shard_is_refused(tmp_path):
    directory = write_bin(tmp_path / "model", TENSORS, n_shards=3)
    (directory / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(ConversionError, match=r"missing shard pytorch_model-00002-of"):
        open_source(directory)


def test_pytorch_shard_without_what_the_index_says_is_refused(tmp_path):
    directory = write_bin(tmp_path / "model", TENSORS, n_shards=2)
    index = json.loads((directory / "pytorch_model.bin.index.json").read_text())
    name = next(n for n, f in index["weight_map"].items() if "00002-of" in f)
    part = {n: TENSORS[n] for n, f in index["weight_map"].items() if "00002-of" in f and n != name}
    save(directory / "pytorch_model-00002-of-00002.bin", part)
    with pytest.raises(ConversionError, match=f"expected tensor {name} in .*, found it in no file"):
        open_source(directory)


def test_pytorch_extra_and_missing_tensors_are_refused(tmp_path):
    extra = {"model.layers.0.mlp.router.weight": np.zeros((4, 64), np.float32)}
    with pytest.raises(ConversionError, match=r"model\.layers\.0\.mlp\.router\.weight"):
        open_source(write_bin(tmp_path / "extra", TENSORS | extra))
    less = {n: t for n, t in TENSORS.items() if n != "model.norm.weight"}
    with pytest.raises(ConversionError, match=r"missing tensor\(s\): model\.norm\.weight"):
        open_source(write_bin(tmp_path / "less", less))
