"""One model in several formats: the same `.qlm` tensors, byte for byte; damaged, no file."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Ggml
from small_models import VALUES, meta_shards, meta_tensors, random_tensors, write_bin, write_meta
from tiny_hf import config_of, write_repository

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
GGUF_NAMES = {
    "tok_embeddings": "token_embd",
    "layers.": "blk.",
    "attention_norm": "attn_norm",
    "attention.wo": "attn_output",
    "attention.w": "attn_",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
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


def test_convert_gives_the_same_bytes_from_gguf(tmp_path):
    """Whose row order of q and k is Meta's."""
    values = config_of(hidden_size=tiny_gguf.HIDDEN, intermediate_size=tiny_gguf.INTERMEDIATE)
    tensors = random_tensors(values, "f16")
    renamed = {}
    for name, array in meta_tensors(tensors, tiny_gguf.HEAD_DIM).items():
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        name = "output_norm.weight" if name == "norm.weight" else name
        renamed[name] = array.astype(np.float32)
    gguf = tiny_gguf.write_gguf(tmp_path / "a.gguf", tied=False, matrices=Ggml.F16, extra=renamed)
    convert(gguf, tmp_path / "gguf.qlm", "q4")
    convert(write_bin(tmp_path / "bin", tensors, values), tmp_path / "bin.qlm", "q4")
    with QlmFile.open(tmp_path / "gguf.qlm") as a, QlmFile.open(tmp_path / "bin.qlm") as b:
        assert a.tensors.keys() == b.tensors.keys()
        for name in a.tensors:
            assert a.data(name).tobytes() == b.data(name).tobytes()


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
