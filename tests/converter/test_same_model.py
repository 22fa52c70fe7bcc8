"""One model in several formats: the same `.qlm` tensors, byte for byte; damaged, no file."""

from __future__ import annotations

import pytest
import raw_mindspore
import small_gguf
from small_models import VALUES, meta_shards, meta_tensors, random_tensors, write_bin, write_meta
from tiny_hf import config_of, write_repository
from tiny_mindspore import in_mindformers
from tiny_mindspore import write as write_mindspore

from converter.pipeline import convert
from converter.sources.options import SourceOptions
from qllama.errors import ConversionError
from qllama.format.reader import QlmFile
from qllama.tensors import EMBEDDING

WRITERS = {
    "safetensors shards": lambda d, t: write_repository(d, VALUES, t, shards=3),
    "bin": lambda d, t: write_bin(d, t),
    "bin shards": lambda d, t: write_bin(d, t, n_shards=3),
    "meta": lambda d, t: write_meta(d, meta_shards(meta_tensors(t), 1)),
    "meta of llama 2": lambda d, t: write_meta(
        d, meta_shards(meta_tensors(t), 2, embedding_axis=1)
    ),
    "meta of llama 3": lambda d, t: write_meta(d, meta_shards(meta_tensors(t), 4)),
}
FAMILIES = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "llama3 rope": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "window": {"model_type": "mistral", "sliding_window": 16},
    "biases": {"model_type": "qwen2"},
    "norms of heads": {"model_type": "qwen3", "head_dim": 16},
    "fused": {"model_type": "phi3"},
}


@pytest.mark.parametrize("preset", ["q4", "f16"])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_convert_gives_the_same_bytes_from_every_format(tmp_path, preset, dtype):
    tensors = random_tensors(dtype=dtype)
    convert(write_repository(tmp_path / "model", VALUES, tensors), tmp_path / "a.qlm", preset)
    with QlmFile.open(tmp_path / "a.qlm") as expected:
        for name, write in WRITERS.items():
            out = tmp_path / f"{name}.qlm"
            convert(write(tmp_path / name, tensors), out, preset)
            with QlmFile.open(out) as found:
                assert found.tensors.keys() == expected.tensors.keys()
                for tensor, info in expected.tensors.items():
                    assert found.tensors[tensor].type == info.type
                    assert found.data(tensor).tobytes() == expected.data(tensor).tobytes()


def assert_same(path, expected):
    with QlmFile.open(path) as a, QlmFile.open(expected) as b:
        assert a.tensors.keys() == b.tensors.keys()
        for name in b.tensors:
            assert a.data(name).tobytes() == b.data(name).tobytes(), name
        assert a.config == b.config


@pytest.mark.parametrize("family", FAMILIES)
def test_convert_gives_the_same_model_of_every_family(tmp_path, family):
    values = config_of(num_attention_heads=8, num_key_value_heads=4, **FAMILIES[family])
    tensors = random_tensors(values)
    expected = tmp_path / "a.qlm"
    repository = write_repository(tmp_path / "model", values, tensors)
    convert(repository, expected, "q4")
    sources = {
        "shards": write_repository(tmp_path / "shards", values, tensors, shards=3),
        "bin": write_bin(tmp_path / "bin", tensors, values),
        "bins": write_bin(tmp_path / "bins", tensors, values, n_shards=3),
    }
    if values["model_type"] in ("llama", "mistral"):
        head = {"lm_head.weight": tensors.get("lm_head.weight", tensors[EMBEDDING])}
        shards = meta_shards(meta_tensors(tensors | head), 2)
        sources["meta"] = write_meta(tmp_path / "meta", shards)
        data = raw_mindspore.checkpoint(in_mindformers(tensors), slice_bytes=5000)
        sources["mindspore"] = write_mindspore(tmp_path / "mindspore", data, values)
    for name, path in sources.items():
        config = repository / "config.json" if name == "meta" else None
        out = tmp_path / f"{name}.qlm"
        convert(path, out, "q4", options=SourceOptions(config=config))
        assert_same(out, expected)


@pytest.mark.parametrize("family", ["untied", "tied", "biases", "norms of heads"])
def test_convert_gives_the_same_model_from_gguf(tmp_path, family):
    """Whose row order of q and k is Meta's, for Llama."""
    values = small_gguf.config(**FAMILIES[family] | {"head_dim": 64})
    tensors = random_tensors(values, "f16")
    gguf = small_gguf.write(tmp_path / "a.gguf", tensors, values)
    convert(gguf, tmp_path / "gguf.qlm", "q4")
    convert(write_bin(tmp_path / "bin", tensors, values), tmp_path / "bin.qlm", "q4")
    assert_same(tmp_path / "gguf.qlm", tmp_path / "bin.qlm")


@pytest.mark.parametrize("name", ["bin shards", "meta of llama 3"])
def test_convert_checkpoint_cut_short_leaves_no_file(tmp_path, name):
    directory = WRITERS[name](tmp_path / "model", random_tensors())
    files = sorted(p for p in directory.iterdir() if p.suffix in (".bin", ".pth"))
    whole = files[-1].read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        files[-1].write_bytes(whole[:length])
        with pytest.raises(ConversionError) as caught:
            convert(directory, tmp_path / "out.qlm", "q8")
        assert str(caught.value).startswith(str(files[-1]))
        assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
