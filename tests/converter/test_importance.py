"""Importance files: what is written is read, and what does not fit is refused."""

from __future__ import annotations

import hashlib

import gguf
import numpy as np
import pytest
from tiny_gguf import write_gguf

from converter.importance import (
    importance_by_norm,
    multiplied_matrices,
    read_importance,
    write_importance,
)
from converter.pipeline import convert
from converter.sources.gguf import GgufSource
from converter.tensor_map import from_gguf, to_gguf
from qllama.errors import ConversionError
from qllama.format import QlmFile
from qllama.quant import codec
from qllama.tensors import EMBEDDING, HEAD


def shapes_of(source):
    return {name: tensor.shape for name, tensor in GgufSource(source).tensors.items()}


def random_sums(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {n: 10 * rng.standard_normal(k) ** 2 for n, k in multiplied_matrices(shapes).items()}


def write(path, sums):
    write_importance(path, sums, 10, model="tiny", text="a.txt", n_windows=2)
    return path


def write_raw(path, tensors):
    """An importance file of any tensors, as `llama-imatrix` could have left it."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    for name, values in tensors.items():
        writer.add_tensor(name, np.asarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def source(tmp_path):
    return write_gguf(tmp_path / "m.gguf", tied=False)


@pytest.fixture
def shapes(source):
    return shapes_of(source)


@pytest.fixture
def raw(shapes):
    """Tensors of a whole importance file, by GGUF's names."""
    tensors = {}
    for name, sums in random_sums(shapes).items():
        tensors[f"{to_gguf(name)}.in_sum2"] = sums.astype(np.float32)[None]
        tensors[f"{to_gguf(name)}.counts"] = np.full((1, 1), 10, np.float32)
    return tensors


def test_importance_comes_back_as_mean_squares(tmp_path, shapes):
    sums = random_sums(shapes)
    path = write(tmp_path / "i.gguf", sums)
    found = read_importance(path, shapes)
    assert found.columns.keys() == sums.keys()
    for name, values in sums.items():
        expected = values.astype(np.float32) / np.float32(10)
        np.testing.assert_array_equal(found.columns[name], expected, strict=True)
    assert found.provenance == {
        "name": "i.gguf",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "texts": ["a.txt"],
        "n_windows": 2,
    }


def test_importance_file_is_laid_out_as_llama_cpp_expects(tmp_path, shapes):
    reader = gguf.GGUFReader(write(tmp_path / "i.gguf", random_sums(shapes)))
    found = {t.name: (t.tensor_type.name, t.shape.tolist()) for t in reader.tensors}
    assert found["blk.1.ffn_down.weight.in_sum2"] == ("F32", [512, 1])
    assert found["blk.1.ffn_down.weight.counts"] == ("F32", [1, 1])
    assert found["output.weight.in_sum2"] == ("F32", [256, 1])
    assert "token_embd.weight.in_sum2" not in found
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    assert reader.fields["imatrix.chunk_size"].contents() == 5


def test_importance_of_a_tied_head_is_the_embeddings(tmp_path):
    tied = shapes_of(write_gguf(tmp_path / "t.gguf"))
    assert EMBEDDING in multiplied_matrices(tied)
    path = write(tmp_path / "i.gguf", random_sums(tied))
    assert EMBEDDING in read_importance(path, tied).columns


def test_importance_of_llama_imatrix_may_lack_the_head_and_hold_more(tmp_path, shapes, raw):
    # Means and statistics stand beside the sums since 2026.
    raw = {n: v for n, v in raw.items() if not n.startswith("output.")}
    raw["blk.0.attn_q.weight.in_sum"] = np.ones((1, 256), np.float32)
    raw["blk.0.attn_q.weight.stats"] = np.full(12, np.nan, np.float32)
    columns = read_importance(write_raw(tmp_path / "i.gguf", raw), shapes).columns
    assert HEAD not in columns
    assert len(columns) == 14


def test_every_matrix_has_a_gguf_name_and_comes_back(shapes):
    for name in multiplied_matrices(shapes):
        assert from_gguf([to_gguf(name)]) == ({name: to_gguf(name)}, [])


Q, DOWN = "blk.0.attn_q.weight", "blk.1.ffn_down.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{DOWN}.in_sum2": None}, r"lacks tensor\(s\) model.layers.1.mlp.down_proj.weight;"),
        ({f"{DOWN}.counts": None}, rf"lacks tensor {DOWN}.counts;"),
        ({f"{DOWN}.counts": [[0.0]]}, rf"{DOWN}.counts: expected a number of tokens, found 0"),
        ({f"{DOWN}.in_sum2": np.ones((1, 256))}, rf"{DOWN}.in_sum2: expected 512 .*\(1, 256\)"),
        ({f"{Q}.in_sum2": np.full((1, 256), np.nan)}, rf"{Q}.in_sum2\[0\]: .* found nan"),
        ({f"{Q}.in_sum2": np.full((1, 256), -1)}, rf"{Q}.in_sum2\[0\]: .* found -1"),
        ({"blk.7.attn_q.weight.in_sum2": [[1]]}, "of another model: .*layers.7.self_attn.q_proj"),
    ],
)
def test_importance_that_does_not_fit_is_refused_by_name(tmp_path, shapes, raw, change, message):
    for name, values in change.items():
        raw.pop(name, None)
        if values is not None:
            raw[name] = np.asarray(values, np.float32)
    path = write_raw(tmp_path / "i.gguf", raw)
    with pytest.raises(ConversionError, match=message) as caught:
        read_importance(path, shapes)
    assert str(path) in str(caught.value)
    assert "qllama calibrate" in str(caught.value)


def test_importance_file_that_is_a_model_is_refused(source, shapes):
    with pytest.raises(ConversionError, match=r"expected an importance file.*qllama calibrate"):
        read_importance(source, shapes)


def test_importance_file_that_is_no_gguf_is_refused(tmp_path, shapes):
    (tmp_path / "old.dat").write_bytes(b"\x05\0\0\0anything")
    with pytest.raises(ConversionError, match=r"old\.dat: not a GGUF file"):
        read_importance(tmp_path / "old.dat", shapes)


def test_importance_that_cannot_be_written_leaves_nothing(tmp_path, shapes):
    (tmp_path / "i.gguf").mkdir()
    with pytest.raises(ConversionError, match=r"i\.gguf: cannot be written"):
        write(tmp_path / "i.gguf", random_sums(shapes))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i.gguf", "m.gguf"]


@pytest.mark.parametrize("type", ["q4", "q8_0"])
def test_convert_with_importance_quantizes_with_it_and_says_so(tmp_path, source, shapes, type):
    sums = random_sums(shapes)
    path = write(tmp_path / "i.gguf", sums)
    convert(source, tmp_path / "m.qlm", type, importance=path, check=False)
    weights = GgufSource(source).tensors
    known = read_importance(path, shapes)
    with QlmFile.open(tmp_path / "m.qlm") as file:
        assert file.provenance["importance"] == known.provenance
        for name, info in file.tensors.items():
            if len(info.shape) == 2:
                w = weights[name].read(0, info.shape[0])
                # The embedding of a model with a head is only looked up.
                importance = None if name == EMBEDDING else known.columns[name]
                expected = codec(info.type).quantize(w, importance)
                np.testing.assert_array_equal(file.data(name), expected)


def test_convert_importance_of_another_model_makes_no_file(tmp_path, source):
    other = write(tmp_path / "i.gguf", {EMBEDDING: np.ones(256)})
    with pytest.raises(ConversionError, match="of another model"):
        convert(source, tmp_path / "m.qlm", importance=other)
    assert not (tmp_path / "m.qlm").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_importance_by_norm_is_of_matrices_that_read_the_norm(tmp_path, tied):
    tensors = GgufSource(write_gguf(tmp_path / "m.gguf", tied=tied)).tensors
    read = {name: t.read(0, t.shape[0]) for name, t in tensors.items() if len(t.shape) == 1}
    norms = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "model.layers.1.input_layernorm.weight"),
        **dict.fromkeys(("gate_proj", "up_proj"), "model.layers.1.post_attention_layernorm.weight"),
    }
    for part in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        (name,) = (n for n in tensors if n.startswith("model.layers.1.") and f"{part}.weight" in n)
        found = importance_by_norm(name, tensors)
        if part in norms:
            np.testing.assert_array_equal(found, read[norms[part]] ** 2)
        else:
            assert found is None
    final = read["model.norm.weight"] ** 2
    if tied:
        np.testing.assert_array_equal(importance_by_norm(EMBEDDING, tensors), final)
    else:
        assert importance_by_norm(EMBEDDING, tensors) is None
        np.testing.assert_array_equal(importance_by_norm(HEAD, tensors), final)


def test_importance_by_norm_of_a_damaged_norm_is_none(tmp_path):
    bad = {"blk.0.attn_norm.weight": np.full(256, np.nan, np.float32)}
    tensors = GgufSource(write_gguf(tmp_path / "m.gguf", extra=bad)).tensors
    assert importance_by_norm("model.layers.0.self_attn.q_proj.weight", tensors) is None
