"""Whole conversions: what the `.qlm` holds, and what failures leave behind."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Ggml
from test_gguf_source import expected_tensors
from tiny_gguf import HEADS, to_half_split, write_gguf

from converter import slabs
from converter.check import weights
from converter.naming import default_out_path
from converter.pipeline import convert
from qllama.errors import ConversionError, TokenizerError, UnsupportedModelError
from qllama.format.reader import QlmFile
from qllama.quant import QUANT_TYPES, codec

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def source(tmp_path) -> Path:
    return write_gguf(tmp_path / "tiny.F32.gguf", tied=False)


def contents(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_convert_f32_holds_the_weights_unchanged(tmp_path, source):
    convert(source, tmp_path / "out.qlm", type="f32")
    expected = expected_tensors(source, permuted=True)
    with QlmFile.open(tmp_path / "out.qlm") as file:
        file.verify()
        assert file.tensors.keys() == expected.keys()
        for name, values in expected.items():
            found = file.vector(name) if values.ndim == 1 else file.matrix(name)
            np.testing.assert_array_equal(found, values, err_msg=name)


def by_norm(name, tensors):
    """Squares of the weights of the norm before a matrix, if one is."""
    layer = ".".join(name.split(".")[:3])
    norms = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), f"{layer}.input_layernorm.weight"),
        **dict.fromkeys(("gate_proj", "up_proj"), f"{layer}.post_attention_layernorm.weight"),
        "lm_head": "model.norm.weight",
    }
    norm = norms.get(name.split(".")[-2])
    return None if norm is None else tensors[norm] ** 2


@pytest.mark.parametrize(
    ("preset", "fast"),
    [
        ("q4", False),
        ("q4", True),
        ("q5", False),
        ("q6", False),
        ("q8", False),
        ("q4_0", True),
        ("f16", False),
    ],
)
def test_convert_stores_exactly_what_the_codec_defines(tmp_path, source, preset, fast, monkeypatch):
    # Slabs of one and two tiles, so that every tensor is put together from several.
    monkeypatch.setattr(slabs, "_SLAB_VALUES", 2 * 16 * 256)
    convert(source, tmp_path / "out.qlm", type=preset, n_threads=2, fast=fast)
    expected = expected_tensors(source, permuted=True)
    with QlmFile.open(tmp_path / "out.qlm") as file:
        for name, info in file.tensors.items():
            if len(info.shape) == 2:
                importance = by_norm(name, expected)
                data = codec(info.type).quantize(expected[name], importance, fast=fast)
                np.testing.assert_array_equal(file.data(name), data, err_msg=name)
        assert {file.tensors[n].type for n in expected if n.endswith("norm.weight")} == {"f32"}
        assert file.recipe["name"] == preset
        assert file.provenance.get("fast", False) is fast


def test_convert_types_follow_the_recipe(tmp_path, source):
    report = convert(source, tmp_path / "out.qlm", type="Q4")
    types = {t.name: t.type for t in report.tensors}
    assert types[Q_PROJ] == "q4"
    assert types["model.embed_tokens.weight"] == types["lm_head.weight"] == "q4"
    assert types["model.norm.weight"] == "f32"
    assert report.recipe == "q4"


@pytest.mark.parametrize("kind", [Ggml.Q8_0, Ggml.Q4_0], ids=lambda kind: kind.name)
def test_convert_same_blocks_are_carried_without_loss(tmp_path, kind):
    source = write_gguf(tmp_path / "m.gguf", matrices=kind)
    name = kind.name.lower()
    report = convert(source, tmp_path / "out.qlm", type=name)
    assert {t.name for t in report.tensors if t.carried} == {
        t.name for t in report.tensors if len(t.shape) == 2
    }
    raw = {t.name: np.array(t.data) for t in gguf.GGUFReader(source).tensors}
    blocks = to_half_split(raw["blk.1.attn_q.weight"], HEADS)
    with QlmFile.open(tmp_path / "out.qlm") as file:
        codes, scales = codec(name).unpack(file.data(Q_PROJ), *file.tensors[Q_PROJ].shape)
        expected_codes, expected_scales = codec(name).from_ggml_blocks(blocks)
        np.testing.assert_array_equal(codes, expected_codes)
        np.testing.assert_array_equal(scales, expected_scales)
        np.testing.assert_array_equal(
            file.matrix(Q_PROJ), expected_tensors(source, permuted=True)[Q_PROJ]
        )


def test_convert_thread_count_and_slab_size_change_no_byte(tmp_path, source, monkeypatch):
    convert(source, tmp_path / "a.qlm", n_threads=1)
    monkeypatch.setattr(slabs, "_SLAB_VALUES", 1)
    convert(source, tmp_path / "b.qlm", n_threads=3)
    assert (tmp_path / "a.qlm").read_bytes() == (tmp_path / "b.qlm").read_bytes()


def test_convert_memory_is_a_few_slabs_however_big_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(slabs, "_SLAB_VALUES", 1 << 14)
    monkeypatch.setattr(weights, "_SLAB_VALUES", 1 << 14)
    # 16 MiB of which no more than some 64 KiB are needed at once.
    big = {"token_embd.weight": np.ones((16384, 256), np.float32)}
    peaks = {}
    for name, extra in (("small", {}), ("big", big)):
        source = write_gguf(tmp_path / f"{name}.gguf", extra=extra)
        convert(source, tmp_path / "warm.qlm")
        tracemalloc.start()
        convert(source, tmp_path / "out.qlm")
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks["big"] - peaks["small"] < 2 << 20


def test_convert_provenance_tells_the_source(tmp_path, source):
    convert(source, tmp_path / "out.qlm", origin="a package")
    with QlmFile.open(tmp_path / "out.qlm") as file:
        found = file.provenance
    assert found["source"] == "tiny.F32.gguf"
    assert found["n_bytes"] == source.stat().st_size
    assert found["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    file_of_source = {key: found[key] for key in ("n_bytes", "sha256")}
    assert found["files"] == [{"name": "tiny.F32.gguf", **file_of_source}]
    assert found["origin"] == "a package"
    assert found["metadata"]["general.architecture"] == "llama"
    assert found["qllama"]


def test_convert_known_hash_is_not_computed_again(tmp_path, source):
    convert(source, tmp_path / "out.qlm", sha256="ab" * 32)
    with QlmFile.open(tmp_path / "out.qlm") as file:
        assert file.provenance["sha256"] == "ab" * 32


def test_convert_tokenizer_is_the_source_s(tmp_path, source):
    convert(source, tmp_path / "out.qlm")
    with QlmFile.open(tmp_path / "out.qlm") as file:
        assert file.tokenizer.eos_token_ids[0] == 2
        assert b"hello" in file.tokenizer_blob


def test_convert_progress_counts_up_to_the_total(tmp_path, source):
    seen: dict[str, list[tuple[int, int]]] = {}
    convert(
        source,
        tmp_path / "out.qlm",
        on_progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
    )
    assert list(seen) == [
        "preparing the quantizers",
        "converting tiny.F32.gguf",
        "hashing tiny.F32.gguf",
    ]
    for steps in seen.values():
        done = [d for d, _ in steps]
        assert done == sorted(done)
        assert len({total for _, total in steps}) == 1
        assert steps[-1][0] == steps[-1][1]


def test_convert_report_sums_what_the_file_holds(tmp_path, source):
    report = convert(source, tmp_path / "out.qlm", type="q8_0")
    with QlmFile.open(tmp_path / "out.qlm") as file:
        infos = file.tensors
    assert [t.name for t in report.tensors] == list(infos)
    assert [t.n_bytes for t in report.tensors] == [i.n_bytes for i in infos.values()]
    assert {t.source_type for t in report.tensors} == {"F32"}
    assert report.n_weights == sum(math.prod(i.shape) for i in infos.values())
    assert report.n_bytes == (tmp_path / "out.qlm").stat().st_size
    # All but the few f32 vectors and the two padded embeddings have 8.5 bits.
    assert 8.5 < report.bits_per_weight < 8.8
    assert str(report).startswith(f"{tmp_path / 'out.qlm'}: q8_0, 1.3 M weights at 8.53 bits")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct-q4.qlm"),
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Llama-3.2-1B-Instruct-q4.qlm"),
        ("model-IQ3_XXS.GGUF", "model-q4.qlm"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "qwen2.5-0.5b-instruct-q4.qlm"),
        ("ggml-model-bf16.gguf", "ggml-model-q4.qlm"),
        ("TinyLlama-1.1B.gguf", "TinyLlama-1.1B-q4.qlm"),
        ("blob", "blob-q4.qlm"),
        ("f16.gguf", "f16-q4.qlm"),
        ("Llama-3.2-1B", "Llama-3.2-1B-q4.qlm"),
        ("model.safetensors", "where-q4.qlm"),
        ("model-00001-of-00004.safetensors", "where-q4.qlm"),
        ("pytorch_model.bin.index.json", "where-q4.qlm"),
        ("consolidated.00.pth", "where-q4.qlm"),
        ("big-00001-of-00003.gguf", "big-q4.qlm"),
        ("llama2_7b.ckpt", "llama2_7b-q4.qlm"),
    ],
)
def test_default_out_path_is_name_and_type_in_the_current_directory(name, expected):
    assert default_out_path(Path("some/where") / name, "Q4") == Path(expected)


def test_convert_without_target_writes_beside_the_user(tmp_path, source, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    report = convert(source, type="q8")
    assert report.out == Path("tiny-q8.qlm")
    assert contents(tmp_path / "here") == ["tiny-q8.qlm"]


class StopNow(Exception):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("stage", ["converting", "hashing"])
def test_convert_interrupted_leaves_nothing(tmp_path, source, stage, monkeypatch):
    monkeypatch.setattr(slabs, "_SLAB_VALUES", 1)

    def stop(found: str, done: int, total: int) -> None:
        if found.startswith(stage) and done > total // 2:
            raise StopNow

    with pytest.raises(StopNow):
        convert(source, tmp_path / "out.qlm", on_progress=stop)
    assert contents(tmp_path) == ["tiny.F32.gguf"]


def test_convert_interrupted_keeps_an_older_target(tmp_path, source):
    (tmp_path / "out.qlm").write_bytes(b"old")

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("converting"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out.qlm", on_progress=stop)
    assert contents(tmp_path) == ["out.qlm", "tiny.F32.gguf"]
    assert (tmp_path / "out.qlm").read_bytes() == b"old"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "blk.1.attn_norm.weight"])
def test_convert_weight_that_is_not_finite_is_refused(tmp_path, name, bad):
    values = np.ones((512, 256) if "up" in name else (256,), np.float32)
    values[-1] = bad
    source = write_gguf(tmp_path / "m.gguf", extra={name: values})
    with pytest.raises(ConversionError, match=rf"m\.gguf: tensor '{name}'"):
        convert(source, tmp_path / "out.qlm")
    assert contents(tmp_path) == ["m.gguf"]


def test_convert_carried_scale_that_is_not_finite_is_refused(tmp_path):
    source = write_gguf(tmp_path / "m.gguf", matrices=Ggml.Q8_0)
    tensor = next(t for t in gguf.GGUFReader(source).tensors if t.name == "blk.0.ffn_up.weight")
    with source.open("r+b") as file:
        file.seek(tensor.data_offset)
        file.write(b"\x00\x7c")
    with pytest.raises(ConversionError, match=r"'blk\.0\.ffn_up\.weight', rows from 0: .*finite"):
        convert(source, tmp_path / "out.qlm", type="q8")
    assert contents(tmp_path) == ["m.gguf"]


def test_convert_cut_source_leaves_no_target_wherever_it_is_cut(tmp_path, source):
    whole = source.read_bytes()
    cut = tmp_path / "cut.gguf"
    random = np.random.default_rng(5)
    lengths = [0, 3, 4, 23, 24, *random.integers(25, len(whole), 40).tolist(), len(whole) - 1]
    for length in lengths:
        cut.write_bytes(whole[:length])
        with pytest.raises(ConversionError):
            convert(cut, tmp_path / "out.qlm")
    assert contents(tmp_path) == ["cut.gguf", "tiny.F32.gguf"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"arch": "gemma3"}, UnsupportedModelError),
        ({"keys": {"expert_count": 4}}, UnsupportedModelError),
        ({"tokenizer": False}, TokenizerError),
        ({"without": ("output_norm.weight",)}, ConversionError),
    ],
)
def test_convert_refused_source_is_named_and_leaves_no_target(tmp_path, changes, error):
    source = write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(error, match=r"m\.gguf: ") as caught:
        convert(source, tmp_path / "out.qlm")
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == ["m.gguf"]


def test_convert_onto_its_source_is_refused(tmp_path, source):
    before = source.read_bytes()
    with pytest.raises(ConversionError, match="is the source itself"):
        convert(source, source)
    assert source.read_bytes() == before


def test_convert_missing_source_is_refused(tmp_path):
    with pytest.raises(ConversionError, match=r"absent\.gguf: cannot be read"):
        convert(tmp_path / "absent.gguf", tmp_path / "out.qlm")


def test_convert_missing_target_directory_is_refused(tmp_path, source):
    with pytest.raises(ConversionError, match="cannot be written"):
        convert(source, tmp_path / "absent" / "out.qlm")


@pytest.mark.parametrize("target", ["absent/out.qlm", "directory", "full.qlm"])
def test_convert_unusable_target_is_refused_before_the_source_is_hashed(
    tmp_path, source, target, monkeypatch
):
    (tmp_path / "directory").mkdir()
    if target == "full.qlm":
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    stages = []
    with pytest.raises(ConversionError, match=f"{target}: cannot be written"):
        convert(source, tmp_path / target, on_progress=lambda stage, *_: stages.append(stage))
    assert stages == []
    assert contents(tmp_path) == ["directory", "tiny.F32.gguf"]


def test_convert_unknown_type_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConversionError, match="found 'q3'"):
        convert(tmp_path / "absent.gguf", tmp_path / "out.qlm", type="q3")


@pytest.mark.parametrize(("preset", "bits"), [("q4", 4.8), ("q8", 8.51), ("f16", 16.0)])
def test_convert_smollm2_is_whole_and_close_to_its_source(smollm2_gguf, tmp_path, preset, bits):
    report = convert(smollm2_gguf, tmp_path / "out.qlm", type=preset)
    assert report.n_weights == 134_515_008
    assert report.bits_per_weight == pytest.approx(bits, abs=0.02)
    name = "blk.29.attn_q.weight"
    tensor = next(t for t in gguf.GGUFReader(smollm2_gguf).tensors if t.name == name)
    decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
    heads = decoded.reshape(9, 32, 2, 576)
    expected = np.swapaxes(heads, 1, 2).reshape(576, 576)
    with QlmFile.open(tmp_path / "out.qlm") as file:
        file.verify()
        config = file.config
        stored = file.tensors["model.layers.29.self_attn.q_proj.weight"]
        found = file.matrix(stored.name)
    assert (config.num_hidden_layers, config.num_key_value_heads) == (30, 3)
    assert (config.rope_theta, config.tie_word_embeddings) == (100000.0, True)
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    # The source has 4-bit codes with a minimum itself, which is what q4 can hold.
    assert error < {"q4": 0.006, "q8": 0.007, "f16": 0.0003}[preset]
    assert QUANT_TYPES[stored.type].name == {"q4": "q4", "q8": "q8_0", "f16": "f16"}[preset]


def test_convert_file_of_another_kind_is_not_replaced(tmp_path, source):
    config = tmp_path / "config.json"
    config.write_text("{}")
    with pytest.raises(ConversionError, match=r"config\.json: exists, and is no \.qlm file"):
        convert(source, config, type="f16")
    assert config.read_text() == "{}"
    plain = tmp_path / "model"
    for _ in range(2):  # the second time it is a .qlm file, whatever its name
        convert(source, plain, type="f16")
    QlmFile.open(plain).close()
