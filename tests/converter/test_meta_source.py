"""Meta's releases: the joining of shards, names, and the row order of q and k."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_models import (
    PARAMS,
    VALUES,
    meta_shards,
    meta_tensors,
    random_tensors,
    write_meta,
)
from torch_writer import View

from converter.sources.options import SourceOptions
from converter.sources.registry import open_source
from qllama.errors import ConversionError

TENSORS = random_tensors()
META = meta_tensors(TENSORS)
Q = "model.layers.0.self_attn.q_proj.weight"


def check(source, expected=TENSORS):
    assert source.tensors.keys() == expected.keys()
    for name, array in expected.items():
        tensor = source.tensors[name]
        assert tensor.shape == array.shape
        rows = len(array)
        for start, stop in ((0, rows), (rows // 3, rows // 2)):
            np.testing.assert_array_equal(
                tensor.read(start, stop), array[start:stop].astype(np.float32), name
            )


@pytest.mark.parametrize("embedding_axis", [0, 1])
@pytest.mark.parametrize("n_shards", [1, 2, 4])
def test_meta_shards_give_the_tensors_of_hugging_face(tmp_path, n_shards, embedding_axis):
    shards = meta_shards(META, n_shards, embedding_axis=embedding_axis)
    source = open_source(write_meta(tmp_path / "model", shards))
    assert [file.name for file in source.files] == [
        f"consolidated.{i:02}.pth" for i in range(n_shards)
    ]
    check(source)
    assert source.provenance["format"] == "meta"


def test_meta_rows_turn_neighbours_and_ours_turn_halves():
    """q and k as Meta rotates them give the scores that Hugging Face's rotation gives."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 64))
    angles = np.outer([3.0, 11.0], 10000.0 ** -(np.arange(4) / 4))

    def scores(tensors, q, k, turn):
        heads = [
            turn((x @ tensors[name].astype(np.float64).T).reshape(2, -1, 8)) for name in (q, k)
        ]
        return np.einsum("thd,shd->ths", *(h[:, :4] for h in heads))

    def neighbours(h):
        pairs = (h[..., 0::2] + 1j * h[..., 1::2]) * np.exp(1j * angles)[:, None]
        return np.concatenate([pairs.real, pairs.imag], -1)

    def halves(h):
        pairs = (h[..., :4] + 1j * h[..., 4:]) * np.exp(1j * angles)[:, None]
        return np.concatenate([pairs.real, pairs.imag], -1)

    theirs = scores(
        META, "layers.0.attention.wq.weight", "layers.0.attention.wk.weight", neighbours
    )
    ours = scores(TENSORS, Q, Q.replace("q_proj", "k_proj"), halves)
    np.testing.assert_allclose(theirs, ours, rtol=1e-12)
    assert not np.allclose(theirs, scores(TENSORS, Q, Q.replace("q_proj", "k_proj"), neighbours))


def test_meta_path_of_one_shard_stands_for_all(tmp_path):
    directory = write_meta(tmp_path / "model", meta_shards(META, 2))
    check(open_source(directory / "consolidated.01.pth"))


def test_meta_storages_that_overlap_are_each_read_from_their_place(tmp_path):
    # As in the releases of Llama 1, whose shards are views of one buffer a layer.
    (shard,) = meta_shards(META, 1)
    names = [name for name in shard if name.startswith("layers.1.")]
    buffer = np.concatenate([shard[name].reshape(-1) for name in names])
    start = 0
    for name in names:
        shape = shard[name].shape
        shard[name] = View(buffer, shape, (shape[-1], 1)[-len(shape) :], start)
        start += int(np.prod(shape))
    check(open_source(write_meta(tmp_path / "model", [shard])))


def test_meta_file_of_another_name_is_taken_with_its_params(tmp_path):
    directory = write_meta(tmp_path / "model", meta_shards(META, 1))
    (directory / "consolidated.00.pth").rename(directory / "weights.pth")
    check(open_source(directory / "weights.pth"))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_meta_names_in_safetensors_are_taken_too(tmp_path, dtype):
    expected = random_tensors(dtype=dtype)
    directory = tmp_path / "model"
    directory.mkdir()
    save_file(meta_tensors(expected), directory / "consolidated.safetensors")
    params = {k: v for k, v in PARAMS.items() if k not in ("multiple_of", "ffn_dim_multiplier")}
    params |= {"hidden_dim": 96, "head_dim": 8, "sliding_window": "4096"}
    (directory / "params.json").write_text(json.dumps(params))
    source = open_source(directory)
    check(source, expected)
    assert source.config.sliding_window == 4096
    assert source.config.max_position_embeddings == 32768


def test_meta_output_that_is_the_embedding_is_tied(tmp_path):
    again = META | {"output.weight": META["tok_embeddings.weight"]}
    source = open_source(write_meta(tmp_path / "again", [again]))
    assert source.config.tie_word_embeddings
    check(source, {n: t for n, t in TENSORS.items() if n != "lm_head.weight"})
    assert not open_source(write_meta(tmp_path / "untied", [META])).config.tie_word_embeddings


def test_meta_output_that_is_missing_is_refused(tmp_path):
    shard = {name: tensor for name, tensor in META.items() if name != "output.weight"}
    with pytest.raises(ConversionError, match=r"lm_head\.weight is missing"):
        open_source(write_meta(tmp_path / "model", [shard]))


def test_meta_config_is_taken_from_a_config_json_or_another_params_json(tmp_path):
    directory = write_meta(tmp_path / "model", meta_shards(META, 2))
    (directory / "params.json").rename(tmp_path / "params.json")
    with pytest.raises(ConversionError, match=r"no params\.json beside the weights"):
        open_source(directory)
    check(open_source(directory, SourceOptions(config=tmp_path / "params.json")))
    values = VALUES | {"rope_theta": 1234.0}
    (tmp_path / "config.json").write_text(json.dumps(values))
    source = open_source(directory, SourceOptions(config=tmp_path / "config.json"))
    assert source.config.rope_theta == 1234.0
    check(source)


@pytest.mark.parametrize("missing", [0, 1])
def test_meta_missing_shard_is_refused(tmp_path, missing):
    directory = write_meta(tmp_path / "model", meta_shards(META, 4))
    (directory / f"consolidated.{missing:02}.pth").unlink()
    with pytest.raises(ConversionError, match=rf"missing shard consolidated\.{missing:02}\.pth"):
        open_source(directory)


def test_meta_missing_last_shards_are_counted(tmp_path):
    directory = write_meta(tmp_path / "model", meta_shards(META, 4)[:2])
    with pytest.raises(
        ConversionError, match=r"expected 4 shards, .* to consolidated\.03\.pth,.* found 2"
    ):
        open_source(directory)


def test_meta_shards_that_do_not_fit_are_refused(tmp_path):
    shards = meta_shards(META, 2)
    del shards[1]["layers.0.ffn_norm.weight"]
    with pytest.raises(
        ConversionError,
        match=r"consolidated\.01\.pth: missing tensor model\.layers\.0\.post_attention_layernorm",
    ):
        open_source(write_meta(tmp_path / "less", shards))
    shards = meta_shards(META, 2)
    shards[1]["layers.0.attention.wv.weight"] = META["layers.0.attention.wv.weight"]
    with pytest.raises(
        ConversionError, match=r"consolidated\.01\.pth: tensor 'layers\.0\.attention\.wv\.weight'"
    ):
        open_source(write_meta(tmp_path / "other", shards))


@pytest.mark.parametrize("name", ["norm.weight", "layers.1.attention_norm.weight"])
def test_meta_shards_of_two_models_are_refused(tmp_path, name):
    shards = meta_shards(META, 4)
    shards[2][name] = shards[2][name][::-1] * 2
    with pytest.raises(
        ConversionError,
        match=rf"consolidated\.02\.pth: tensor '{name}': .*consolidated\.00\.pth.* one download",
    ) as caught:
        open_source(write_meta(tmp_path / "model", shards))
    assert "\n" not in str(caught.value)


def test_meta_copies_of_a_norm_that_drifted_apart_in_training_are_the_first(tmp_path):
    shards = meta_shards(META, 2)
    for name in [name for name in shards[1] if "norm" in name]:
        shards[1][name] = shards[1][name] * shards[1][name].dtype.type(1.05)
    check(open_source(write_meta(tmp_path / "model", shards)))


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("layers.0.attention.wq.weight", np.zeros((64, 64), np.int8), "found int8"),
        ("layers.0.attention.wq.weight", np.zeros((60, 64), np.float16), r"q_proj\.weight"),
        ("layers.0.attention.wk.weight", np.zeros((64, 64), np.float16), r"k_proj\.weight"),
        ("layers.0.attention.wq.weight", np.zeros(64, np.float16), r"q_proj\.weight"),
        ("layers.0.feed_forward.gate.weight", np.zeros((8, 64), np.float16), r"gate\.weight"),
        ("layers.0.attention.wq.weight", np.float16(1), "found a number"),
        ("tok_embeddings.weight", np.float16(1), "found a number"),
        ("norm.weight", np.zeros(63, np.float16), r"model\.norm\.weight"),
        ("tok_embeddings.weight", np.zeros((271, 64), np.float16), r"embed_tokens\.weight"),
    ],
)
def test_meta_wrong_type_shape_or_name_is_refused(tmp_path, name, array, expected):
    with pytest.raises(ConversionError, match=expected) as caught:
        open_source(write_meta(tmp_path / "model", [META | {name: np.asarray(array)}]))
    assert "\n" not in str(caught.value)


def test_meta_directory_with_nothing_to_read_is_refused(tmp_path):
    directory = write_meta(tmp_path / "model", [META])
    shutil.move(directory / "consolidated.00.pth", directory / "consolidated.pth")
    with pytest.raises(ConversionError, match=r"consolidated\.00\.pth"):
        open_source(directory)


def test_meta_damaged_shard_is_named(tmp_path):
    directory = write_meta(tmp_path / "model", meta_shards(META, 2))
    path = directory / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConversionError, match=r"consolidated\.01\.pth: .*incomplete"):
        open_source(directory)


def test_meta_lfs_pointer_is_named(tmp_path):
    directory = write_meta(tmp_path / "model", [META])
    (directory / "consolidated.00.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConversionError, match=r"consolidated\.00\.pth: .*git lfs pull"):
        open_source(directory)
