"""Hugging Face repositories: exactly the weights that are in them, and what is refused."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tiny_hf import (
    DTYPES,
    config_of,
    random_weights,
    shapes_of,
    write_json,
    write_repository,
    write_shards,
)

from converter.sources.options import SourceOptions
from converter.sources.registry import open_source
from qllama.cli import cli
from qllama.errors import ConversionError
from qllama.tensors import expected_shapes

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [0, 3])
def test_huggingface_weights_are_those_of_the_files(tmp_path, dtype, shards):
    weights = random_weights(shapes_of(config_of()), dtype)
    source = open_source(write_repository(tmp_path / "m", None, weights, shards=shards))
    assert list(source.tensors) == list(expected_shapes(source.config))
    for name, tensor in source.tensors.items():
        values = tensor.read(0, tensor.shape[0])
        np.testing.assert_array_equal(values, weights[name].astype(np.float32), strict=True)
        assert tensor.source_type == DTYPES[dtype](0).dtype.name


def test_huggingface_file_and_index_are_the_directory(tmp_path):
    one = write_repository(tmp_path / "one")
    several = write_repository(tmp_path / "several", shards=2)
    files = [p for p in several.iterdir() if p.suffix == ".safetensors"]
    assert open_source(one / "model.safetensors").files == (one / "model.safetensors",)
    assert open_source(several / "model.safetensors.index.json").files == tuple(sorted(files))


def test_huggingface_copies_in_other_formats_give_no_duplicates(tmp_path):
    directory = write_repository(tmp_path / "m", shards=2)
    for name in ("consolidated.safetensors", "consolidated.00.pth", "pytorch_model.bin"):
        shutil.copy(directory / "model-00001-of-00002.safetensors", directory / name)
    write_json(directory / "params.json", {"dim": 64})
    assert len(open_source(directory).files) == 2


def test_huggingface_provenance_tells_what_config_json_says(tmp_path):
    source = open_source(write_repository(tmp_path / "m"))
    assert source.provenance == {
        "format": "huggingface",
        "metadata": {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "torch_dtype": "float32",
        },
    }


def test_huggingface_config_of_the_user_s_comes_first(tmp_path):
    directory = write_repository(tmp_path / "m", config_of(something_new=0.5))
    other = write_json(tmp_path / "other.json", config_of(rope_theta=5e5))
    source = open_source(directory, SourceOptions(config=other))
    assert source.config.rope_theta == 5e5


def test_huggingface_weights_alone_ask_for_a_config(tmp_path):
    directory = write_repository(tmp_path / "m")
    (directory / "config.json").unlink()
    with pytest.raises(ConversionError, match=r"no config\.json beside the weights; .* --config"):
        open_source(directory)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "expected JSON"),
        (b"{'a': 1}", "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"[1]", "expected a JSON object"),
    ],
)
def test_huggingface_config_that_is_no_json_object_is_refused(tmp_path, content, complaint):
    directory = write_repository(tmp_path / "m")
    (directory / "config.json").write_bytes(content)
    with pytest.raises(ConversionError, match=rf"config\.json: {complaint}") as caught:
        open_source(directory)
    assert "\n" not in str(caught.value)


def without_a_shard(directory, weights):
    (directory / "model-00002-of-00002.safetensors").unlink()


def with_a_wrong_index(directory, weights):
    weight_map = write_shards(directory, weights, 2)
    weight_map["model.layers.7.mlp.up_proj.weight"] = "model-00002-of-00002.safetensors"
    write_json(directory / "model.safetensors.index.json", {"weight_map": weight_map})


def with_a_tensor_twice(directory, weights):
    shard = directory / "model-00002-of-00002.safetensors"
    save_file({**load_file(shard), "model.embed_tokens.weight": weights[Q_PROJ]}, shard)


def with_an_integer_tensor(directory, weights):
    write_shards(directory, {**weights, Q_PROJ: weights[Q_PROJ].astype(np.int8)}, 2)


def with_an_extra_tensor(directory, weights):
    write_shards(directory, {**weights, "model.layers.0.extra": weights[Q_PROJ]}, 2)


def without_a_tensor(directory, weights):
    write_shards(directory, {n: w for n, w in weights.items() if n != Q_PROJ}, 2)


def with_absurd_layers(directory, weights):
    write_json(directory / "config.json", config_of(num_hidden_layers=10**12))


def with_absurd_width(directory, weights):
    write_json(directory / "config.json", config_of(hidden_size=2**30))


def with_a_cut_shard(directory, weights):
    with (directory / "model-00002-of-00002.safetensors").open("r+b") as file:
        file.truncate(5000)


def with_an_absurd_header(directory, weights):
    with (directory / "model-00002-of-00002.safetensors").open("r+b") as file:
        file.write((2**63 - 1).to_bytes(8, "little"))


DAMAGES = {
    without_a_shard: r"index\.json: missing shard model-00002-of-00002\.safetensors of 2",
    with_a_wrong_index: r"expected tensor model\.layers\.7\.mlp\.up_proj\.weight in model-00002",
    with_a_tensor_twice: r"embed_tokens\.weight is in model-00001-.* and in model-00002-",
    with_an_integer_tensor: rf"'{Q_PROJ}': expected one of the types float32, .* found int8",
    with_an_extra_tensor: r"no use for.*: model\.layers\.0\.extra",
    without_a_tensor: rf"missing tensor\(s\): {Q_PROJ}",
    with_absurd_layers: r"num_hidden_layers = 1000000000000, but .* only 21 tensors",
    with_absurd_width: r"embed_tokens\.weight: expected shape \(270, 1073741824\), found",
    with_a_cut_shard: r"model-00002-.*: truncated or malformed safetensors file",
    with_an_absurd_header: r"model-00002-.*: truncated or malformed safetensors file",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_huggingface_damaged_repository_is_one_clear_line_and_no_file(tmp_path, damage):
    weights = random_weights(shapes_of(config_of()))
    directory = write_repository(tmp_path / "m", None, weights, shards=2)
    damage(directory, weights)
    arguments = ["convert", str(directory), str(tmp_path / "out.qlm")]
    result = CliRunner().invoke(cli, arguments, prog_name="qllama")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"qllama: error: {directory}")
    assert re.search(DAMAGES[damage], line)
    assert (result.exit_code, result.stdout) == (1, "")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
