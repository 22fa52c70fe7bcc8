"""MindSpore's own files and reader, against the converter's; its models against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import raw_mindspore as raw
from tiny_hf import config_of, random_weights, shapes_of, write_tokenizer
from tiny_mindspore import in_mindformers, write

import make_checkpoints
from converter.pipeline import convert
from converter.sources.mindspore_file import ChecksumCheck, scan
from converter.sources.registry import open_source
from qllama.errors import ConversionError
from qllama.format.reader import QlmFile
from qllama.model.reference import forward

pytestmark = pytest.mark.reference

SLICE_KB = 5


@pytest.fixture
def mindspore(monkeypatch) -> Any:
    """MindSpore, which cuts tensors in slices of 5 KiB instead of 512 MiB."""
    module = pytest.importorskip("mindspore")
    monkeypatch.setattr(module.train.serialization, "SLICE_SIZE", SLICE_KB)
    return module


def as_tensors(mindspore: Any, weights: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """What MindFormers gives `save_checkpoint`: its `pt2ms`."""
    return [
        {
            "name": tag,
            "data": mindspore.Tensor(
                values.astype(np.float32), dtype=getattr(mindspore, values.dtype.name)
            ),
        }
        for tag, values in in_mindformers(weights).items()
    ]


@pytest.mark.parametrize("crc", [False, True], ids=["plain", "crc"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_mindspore_s_own_file_has_the_weights(mindspore, tmp_path, dtype, crc):
    weights = random_weights(shapes_of(config_of()), dtype)
    path = write(tmp_path, b"")
    extra = {"epoch_num": 1, "loss_scale": 2.0, "global_step": mindspore.Tensor([3])}
    mindspore.save_checkpoint(
        as_tensors(mindspore, weights), str(path), append_dict=extra, crc_check=crc
    )
    file = scan(path)
    assert (ChecksumCheck(path).crc is not None) == crc
    assert len(file.entries["model.tok_embeddings.embedding_weight"].extents) > 1
    source = open_source(path)
    assert len(source.tensors) == len(weights)
    for name, tensor in source.tensors.items():
        values = tensor.read(0, tensor.shape[0])
        np.testing.assert_array_equal(values, weights[name].astype(np.float32), err_msg=name)


def test_mindspore_s_slices_of_arrays_are_joined(mindspore, tmp_path):
    # What it does when it saves in the background: slices of whole rows, of unequal size.
    weights = random_weights(shapes_of(config_of()), "f16")
    path = write(tmp_path, b"")
    mindspore.save_checkpoint(as_tensors(mindspore, weights), str(path), async_save="thread")
    mindspore.async_ckpt_thread_status()
    for thread in mindspore.train.serialization.threading.enumerate():
        if thread.name == "asyn_save_ckpt":
            thread.join()
    extents = scan(path).entries["model.tok_embeddings.embedding_weight"].extents
    assert len({e.n_bytes for e in extents}) == 2
    source = open_source(path)
    for name, tensor in source.tensors.items():
        values = tensor.read(0, tensor.shape[0])
        np.testing.assert_array_equal(values, weights[name].astype(np.float32), err_msg=name)


@pytest.mark.parametrize("mode", ["AES-GCM", "AES-CBC", "SM4-CBC"])
def test_mindspore_s_encrypted_file_is_told(mindspore, tmp_path, mode):
    path = tmp_path / "m.ckpt"
    mindspore.save_checkpoint(
        [{"name": "a", "data": mindspore.Tensor([1.0])}],
        str(path),
        enc_key=b"0123456789ABCDEF",
        enc_mode=mode,
    )
    with pytest.raises(ConversionError, match="an encrypted checkpoint"):
        scan(path)


def test_writer_of_the_tests_writes_what_mindspore_does(mindspore, tmp_path):
    weights = random_weights(shapes_of(config_of()), "bf16")
    path = tmp_path / "m.ckpt"
    mindspore.save_checkpoint(as_tensors(mindspore, weights), str(path), crc_check=True)
    data = raw.checkpoint(in_mindformers(weights), SLICE_KB * 1024)
    assert path.read_bytes() == raw.with_crc(data)
    ChecksumCheck(path).update(memoryview(path.read_bytes()))


def test_writer_of_the_benchmarks_writes_what_mindspore_reads(mindspore, tmp_path, monkeypatch):
    monkeypatch.setattr(make_checkpoints, "_POOL_VALUES", 9973)
    path = tmp_path / "m.ckpt"
    shapes = shapes_of(config_of())
    make_checkpoints.write_ckpt(path, shapes, make_checkpoints.Weights(raw.BF16), 5000)
    loaded = mindspore.load_checkpoint(str(path))
    file = scan(path)
    assert loaded.keys() == file.entries.keys()
    for tag, parameter in loaded.items():
        extents = file.entries[tag].extents
        data = path.read_bytes()
        content = b"".join(data[e.offset : e.offset + e.n_bytes] for e in extents)
        found = parameter.float().asnumpy().reshape(-1)
        expected = np.frombuffer(content, raw.BF16).astype(np.float32)
        np.testing.assert_array_equal(found, expected, err_msg=tag)


MODELS: dict[str, dict[str, Any]] = {
    "as many kv heads": {"num_key_value_heads": 4},
    "grouped heads": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}
TOKENS = np.random.default_rng(0).integers(270, size=100).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_mindspore_logits_in_float32_are_those_of_transformers(tmp_path, name, dtype):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from test_hf_reference import random_model

    model = random_model("llama", MODELS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(getattr(torch, dtype)))
    values = {k: v.numpy().astype(raw.NUMPY_TYPES[dtype]) for k, v in model.state_dict().items()}
    if name == "tied":
        del values["lm_head.weight"]
    path = write_with_config(tmp_path, in_mindformers(values), model.config)
    convert(path, tmp_path / "m.qlm", type="f32")
    with QlmFile.open(tmp_path / "m.qlm") as file:
        found = forward(file, TOKENS)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    difference = float(np.abs(found - expected).max())
    print(f"{name}, {dtype}: {difference:.1e} of {np.abs(expected).max():.1f}")
    assert difference < 1e-3


def write_with_config(directory: Path, tensors: dict[str, np.ndarray], config: Any) -> Path:
    config.save_pretrained(directory)
    path = directory / "m.ckpt"
    path.write_bytes(raw.checkpoint(tensors, 3000))
    write_tokenizer(directory)
    return path
