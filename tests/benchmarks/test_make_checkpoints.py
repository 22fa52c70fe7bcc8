"""Synthetic checkpoints: the converter takes them for what they imitate."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors import safe_open

import make_checkpoints
from converter.sources.mindspore_file import scan
from converter.sources.registry import open_source

SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
}
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def small(monkeypatch):
    """Small models by the names of the large ones, in several slices and shards."""
    monkeypatch.setattr(make_checkpoints, "_POOL_VALUES", 9973)
    monkeypatch.setattr(make_checkpoints, "_SHARD_BYTES", 90_000)
    monkeypatch.setattr(make_checkpoints.write_ckpt, "__defaults__", (10_000,))
    for checkpoint in make_checkpoints.CHECKPOINTS.values():
        kv_heads = 4 if checkpoint.values["num_key_value_heads"] == 32 else 2
        changes = {**SMALL, "num_key_value_heads": kv_heads}
        for key, value in changes.items():
            monkeypatch.setitem(checkpoint.values, key, value)


def make(directory, name):
    result = CliRunner().invoke(make_checkpoints.main, [str(directory), name])
    assert result.exit_code == 0, result.output
    return directory / name


@pytest.mark.parametrize("name", make_checkpoints.CHECKPOINTS)
def test_checkpoint_opens_as_the_model_that_it_imitates(small, tmp_path, name):
    source = open_source(make(tmp_path, name))
    values = make_checkpoints.CHECKPOINTS[name].values
    config = source.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (64, 2, 300)
    assert config.num_key_value_heads == values["num_key_value_heads"]
    assert config.rope_theta == values["rope_theta"]
    assert config.tie_word_embeddings == values["tie_word_embeddings"]
    assert (config.rope_scaling is not None) == ("rope_scaling" in values)
    assert source.tensors[Q_PROJ].source_type == values["torch_dtype"]
    weights = source.tensors[Q_PROJ].read(0, 64)
    assert 0.015 < weights.std() < 0.025
    np.testing.assert_array_equal(source.tensors["model.norm.weight"].read(0, 64), 1)
    tokenizer, _ = source.tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (0, (1,))


def test_ckpt_tensors_over_the_limit_are_sliced(small, tmp_path):
    file = scan(make(tmp_path, "llama3-8b") / "llama3-8b.ckpt")
    embedding = file.entries["model.tok_embeddings.embedding_weight"]
    assert embedding.dims == (300, 64)
    assert [e.n_bytes for e in embedding.extents] == [10_000, 10_000, 10_000, 8_400]
    assert len(file.entries["model.layers.0.attention.wq.weight"].extents) == 1


def test_shards_are_what_the_index_says(small, tmp_path):
    directory = make(tmp_path, "llama3.2-3b")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) == 2
    for file in files:
        with safe_open(directory / file, "np") as shard:
            held = {name for name, place in index["weight_map"].items() if place == file}
            assert set(shard.keys()) == held


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama2-7b", 6738415616), ("llama3-8b", 8030261248), ("llama3.2-3b", 3212749824)],
)
def test_full_size_is_that_of_the_real_model(name, parameters):
    shapes = make_checkpoints.CHECKPOINTS[name].shapes()
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(make_checkpoints.shutil, "disk_usage", lambda path: usage)
    result = CliRunner().invoke(make_checkpoints.main, [str(tmp_path), "llama2-7b"])
    assert result.exit_code == 1
    assert "llama2-7b takes 13.5 GB, 1.0 GB are free" in result.output
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_no_directory(small, tmp_path, monkeypatch):
    def fail(directory):
        raise OSError("no")

    monkeypatch.setattr(make_checkpoints, "write_tokenizer", fail)
    CliRunner().invoke(make_checkpoints.main, [str(tmp_path), "llama2-7b"])
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "llama2-7b").mkdir()
    (tmp_path / "llama2-7b" / "kept").touch()
    assert [p.name for p in make(tmp_path, "llama2-7b").iterdir()] == ["kept"]
