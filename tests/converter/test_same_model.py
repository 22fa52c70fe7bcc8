"""One model in several formats: the same `.qlm` tensors, byte for byte; damaged, no file."""

from __future__ import annotations

import pytest
from small_models import VALUES, meta_shards, meta_tensors, random_tensors, write_bin, write_meta
from tiny_hf import write_repository

from converter.pipeline import convert
from qllama.errors import ConversionError
from qllama.format.reader import QlmFile

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
