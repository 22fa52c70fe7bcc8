"""The files of a checkpoint: one, shards with an index or without, and what may be wrong."""

from __future__ import annotations

import pytest
from safetensors.numpy import save_file
from tiny_hf import config_of, random_weights, shapes_of, write_json, write_shards

from converter.sources.safetensors_file import safetensors_arrays
from converter.sources.shards import joined, weight_files
from qllama.errors import ConversionError

SINGLE = "model.safetensors"
WEIGHTS = random_weights(shapes_of(config_of()))
INDEX = f"{SINGLE}.index.json"


def files_of(path) -> list[str]:
    return [file.name for file in weight_files(path, SINGLE).files]


def tensors_of(path) -> set[str]:
    found = weight_files(path, SINGLE)
    return set(joined(path, found, [safetensors_arrays(file) for file in found.files]))


@pytest.fixture
def sharded(tmp_path):
    write_shards(tmp_path, WEIGHTS, 3)
    return tmp_path


def test_weight_files_single_one_is_found_beside_copies_in_other_formats(tmp_path):
    save_file(WEIGHTS, tmp_path / SINGLE)
    for name in ("consolidated.safetensors", "pytorch_model.bin", "consolidated.00.pth"):
        (tmp_path / name).write_bytes(b"other")
    assert files_of(tmp_path) == files_of(tmp_path / SINGLE) == [SINGLE]


def test_weight_files_of_an_index_are_its_shards(sharded):
    save_file(WEIGHTS, sharded / "consolidated.safetensors")
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert files_of(sharded) == files_of(sharded / INDEX) == names
    assert tensors_of(sharded) == set(WEIGHTS)


def test_weight_files_single_one_comes_before_an_index_as_in_transformers(sharded):
    save_file(WEIGHTS, sharded / SINGLE)
    assert files_of(sharded) == [SINGLE]


def test_weight_files_without_an_index_are_one_complete_set(sharded):
    (sharded / INDEX).unlink()
    assert tensors_of(sharded) == set(WEIGHTS)


def test_weight_files_of_another_name_are_taken_when_there_is_only_one(tmp_path):
    save_file(WEIGHTS, tmp_path / "tiny.safetensors")
    save_file(WEIGHTS, tmp_path / "adapter_model.safetensors")
    assert files_of(tmp_path) == ["tiny.safetensors"]


@pytest.mark.parametrize("with_index", [True, False])
def test_weight_files_of_one_shard_s_path_are_the_whole_set(sharded, with_index):
    if not with_index:
        (sharded / INDEX).unlink()
    save_file(WEIGHTS, sharded / "other.safetensors")
    assert tensors_of(sharded / "model-00002-of-00003.safetensors") == set(WEIGHTS)


def test_weight_files_shard_s_path_is_in_the_index_of_that_name(sharded):
    shard = sharded / "model-00004-of-00004.safetensors"
    save_file(WEIGHTS, shard)
    with pytest.raises(ConversionError, match=r"model-00001-of-00004\.safetensors and 2 more"):
        weight_files(shard, SINGLE)


@pytest.mark.parametrize("by_path", [True, False])
def test_weight_files_lone_shard_is_told_from_a_whole_model(tmp_path, by_path):
    shard = tmp_path / "model-00001-of-00002.safetensors"
    save_file(WEIGHTS, shard)
    with pytest.raises(ConversionError, match=r"missing shard model-00002-of-00002\.safetensors"):
        weight_files(shard if by_path else tmp_path, SINGLE)


def test_weight_files_set_of_one_is_whole(tmp_path):
    shard = tmp_path / "model-00001-of-00001.safetensors"
    save_file(WEIGHTS, shard)
    assert files_of(tmp_path) == files_of(shard) == [shard.name]


@pytest.mark.parametrize("with_index", [True, False])
def test_weight_files_missing_shard_is_named(sharded, with_index):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    if not with_index:
        (sharded / INDEX).unlink()
    with pytest.raises(ConversionError, match=r"missing shard model-00002-of-00003\.safetensors"):
        weight_files(sharded, SINGLE)


def test_weight_files_of_two_sets_are_refused(sharded):
    (sharded / INDEX).unlink()
    save_file(WEIGHTS, sharded / "other.safetensors")
    with pytest.raises(ConversionError, match=r"3 shards .* found other\.safetensors too"):
        weight_files(sharded, SINGLE)


def test_weight_files_several_without_numbers_or_index_are_refused(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file(WEIGHTS, tmp_path / name)
    with pytest.raises(ConversionError, match=r"expected model\.safetensors\.index\.json beside"):
        weight_files(tmp_path, SINGLE)


def test_weight_files_none_is_refused(tmp_path):
    with pytest.raises(ConversionError, match=r"expected model\.safetensors or .* found neither"):
        weight_files(tmp_path, SINGLE)


def test_weight_files_git_lfs_pointer_is_explained(tmp_path):
    (tmp_path / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(ConversionError, match=r"Git LFS pointer.*git lfs pull"):
        weight_files(tmp_path, SINGLE)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ([], "expected a JSON object"),
        ({}, "weight_map: expected tensors and their files, found None"),
        ({"weight_map": {}}, "weight_map: expected tensors and their files"),
        ({"weight_map": {"a": 1}}, "weight_map: expected names of files beside it, found 1"),
        (
            {"weight_map": {"a": "../model.safetensors"}},
            "weight_map: expected names of files beside it",
        ),
        ({"weight_map": {"a": "/etc/passwd"}}, "weight_map: expected names of files beside it"),
        *(
            ({"weight_map": {"a": name}}, "weight_map: expected names of files beside it, found '")
            for name in ("", ".", "..")
        ),
        ({"weight_map": {"a": "x" * 300}}, r"missing shard 'x{79}\.\.\. of 1; fetch it too"),
        ({"weight_map": {"a": "a\0b"}}, r"missing shard 'a\\x00b' of 1; fetch it too"),
        ({"weight_map": {"a": "\ud800"}}, r"missing shard '\\ud800' of 1; fetch it too"),
    ],
)
def test_weight_files_malformed_index_is_refused(tmp_path, index, complaint):
    write_json(tmp_path / INDEX, index)
    with pytest.raises(ConversionError, match=rf"{INDEX}: {complaint}") as caught:
        weight_files(tmp_path, SINGLE)
    assert "\n" not in str(caught.value)


def test_joined_index_that_names_a_tensor_nobody_has_is_refused(sharded):
    weight_map = dict(weight_files(sharded, SINGLE).weight_map)
    weight_map["model.extra"] = "model-00001-of-00003.safetensors"
    write_json(sharded / INDEX, {"weight_map": weight_map})
    with pytest.raises(ConversionError, match=r"model\.extra in model-00001.* found it in no file"):
        tensors_of(sharded)


def test_joined_index_that_names_another_shard_is_refused(sharded):
    weight_map = dict(weight_files(sharded, SINGLE).weight_map)
    weight_map["model.norm.weight"] = "model-00001-of-00003.safetensors"
    write_json(sharded / INDEX, {"weight_map": weight_map})
    with pytest.raises(ConversionError, match=r"norm\.weight in model-00001-.* in model-00003-"):
        tensors_of(sharded)


def test_joined_tensor_in_two_shards_is_refused(sharded):
    shard = sharded / "model-00003-of-00003.safetensors"
    name = "model.embed_tokens.weight"
    save_file({"lm_head.weight": WEIGHTS["lm_head.weight"], name: WEIGHTS[name]}, shard)
    with pytest.raises(ConversionError, match=rf"{name} is in model-00001-.* and in model-00003-"):
        tensors_of(sharded)
