"""GGUF tensors as rows in qllama's order, against the library's own reading."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Ggml
from tiny_gguf import HEAD_DIM, HEADS, KV_HEADS, LAYERS, dequantized, to_half_split, write_gguf
from tiny_hf import write_tokenizer

from converter.sources.gguf import GgufSource
from converter.sources.options import SourceOptions
from converter.sources.registry import open_source
from qllama.config import RopeScaling
from qllama.errors import (
    ConversionError,
    QllamaError,
    TokenizerError,
    UnsupportedModelError,
)

SUFFIXES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
DECODABLE = [
    Ggml.F32,
    Ggml.F16,
    Ggml.BF16,
    Ggml.Q4_0,
    Ggml.Q4_1,
    Ggml.Q5_0,
    Ggml.Q5_1,
    Ggml.Q8_0,
    Ggml.Q2_K,
    Ggml.Q3_K,
    Ggml.Q4_K,
    Ggml.Q5_K,
    Ggml.Q6_K,
    Ggml.IQ4_XS,
]


def expected_tensors(path, *, permuted: bool) -> dict[str, np.ndarray]:
    """Decode with the library; names and row order as Hugging Face has them."""
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
        "rope_freqs.weight": "model.rope_divisors",
    }
    for i in range(LAYERS):
        for theirs, ours in SUFFIXES.items():
            for end in ("weight", "bias"):
                names[f"blk.{i}.{theirs}.{end}"] = f"model.layers.{i}.{ours}.{end}"
    tensors = {names[name]: values for name, values in dequantized(path).items()}
    for name, values in tensors.items():
        if permuted and ".q_proj." in name:
            tensors[name] = to_half_split(values, HEADS)
        if permuted and ".k_proj." in name:
            tensors[name] = to_half_split(values, KV_HEADS)
    return tensors


def check_equal(source: GgufSource, expected: dict[str, np.ndarray]) -> None:
    assert source.tensors.keys() == expected.keys()
    for name, tensor in source.tensors.items():
        values = tensor.read(0, tensor.shape[0])
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


@pytest.mark.parametrize("kind", DECODABLE, ids=lambda kind: kind.name)
def test_source_every_type_reads_as_the_library_decodes_it(tmp_path, kind):
    path = write_gguf(tmp_path / "m.gguf", matrices=kind, tied=False)
    source = GgufSource(path)
    assert not source.config.tie_word_embeddings
    assert source.tensors["lm_head.weight"].source_type == kind.name
    check_equal(source, expected_tensors(path, permuted=True))


def test_source_llama_biases_are_permuted_with_their_rows(tmp_path):
    random = np.random.default_rng(3)
    shapes = tiny_gguf.biases(
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"
    )
    extra = {
        f"blk.{i}.{name}": random.standard_normal(shape, np.float32)
        for i in range(LAYERS)
        for name, shape in shapes.items()
    }
    path = write_gguf(tmp_path / "m.gguf", extra=extra)
    source = GgufSource(path)
    assert source.config.attention_bias
    assert source.config.attention_output_bias
    assert source.config.mlp_bias
    check_equal(source, expected_tensors(path, permuted=True))


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_source_qwen_rows_stay_where_they_are(tmp_path, arch):
    path = write_gguf(tmp_path / "m.gguf", arch=arch, keys={"attention.key_length": HEAD_DIM})
    source = GgufSource(path)
    assert source.config.model_type == arch
    assert source.config.attention_bias == (arch == "qwen2")
    assert source.config.qk_norm == (arch == "qwen3")
    check_equal(source, expected_tensors(path, permuted=False))


@pytest.mark.parametrize("kind", [Ggml.F16, Ggml.Q8_0, Ggml.Q6_K], ids=lambda kind: kind.name)
def test_source_slab_is_a_part_of_the_whole(tmp_path, kind):
    source = GgufSource(write_gguf(tmp_path / "m.gguf", matrices=kind))
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
        tensor = source.tensors[f"model.layers.1.{name}.weight"]
        whole = tensor.read(0, tensor.shape[0])
        for start, stop in ((0, 16), (16, 48), (48, 112), (112, tensor.shape[0])):
            np.testing.assert_array_equal(tensor.read(start, stop), whole[start:stop])


@pytest.mark.parametrize("kind", [Ggml.Q8_0, Ggml.Q4_0], ids=lambda kind: kind.name)
def test_source_blocks_are_the_file_s_rows_in_order(tmp_path, kind):
    path = write_gguf(tmp_path / "m.gguf", matrices=kind)
    raw = {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}
    tensor = GgufSource(path).tensors["model.layers.0.self_attn.k_proj.weight"]
    assert tensor.block_type == kind.name.lower()
    expected = to_half_split(raw["blk.0.attn_k.weight"], KV_HEADS)
    np.testing.assert_array_equal(tensor.read_blocks(16, 80), expected[16:80])


def test_source_other_types_offer_no_blocks(tmp_path):
    source = GgufSource(write_gguf(tmp_path / "m.gguf", matrices=Ggml.Q4_1))
    assert {t.block_type for t in source.tensors.values()} == {None}


def test_source_rope_freqs_become_divisors(tmp_path):
    divisors = np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32)
    path = write_gguf(tmp_path / "m.gguf", extra={"rope_freqs.weight": divisors})
    source = GgufSource(path)
    assert source.config.rope_scaling == RopeScaling("divisors")
    check_equal(source, expected_tensors(path, permuted=True))


def test_source_rope_freqs_of_ones_are_dropped(tmp_path):
    ones = np.ones(HEAD_DIM // 2, np.float32)
    source = GgufSource(write_gguf(tmp_path / "m.gguf", extra={"rope_freqs.weight": ones}))
    assert source.config.rope_scaling is None
    assert "model.rope_divisors" not in source.tensors


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_source_rope_freqs_that_divide_by_nonsense_are_refused(tmp_path, bad):
    divisors = np.full(HEAD_DIM // 2, 2.0, np.float32)
    divisors[5] = bad
    path = write_gguf(tmp_path / "m.gguf", extra={"rope_freqs.weight": divisors})
    with pytest.raises(ConversionError, match=r"'rope_freqs\.weight': expected positive"):
        GgufSource(path)


def test_source_old_rotary_table_is_ignored(tmp_path):
    extra = {f"blk.{i}.attn_rot_embd.weight": np.ones(32, np.float32) for i in range(LAYERS)}
    plain = GgufSource(write_gguf(tmp_path / "a.gguf"))
    found = GgufSource(write_gguf(tmp_path / "b.gguf", extra=extra))
    assert found.tensors.keys() == plain.tensors.keys()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"without": ("blk.1.ffn_up.weight",)}, r"missing.*layers\.1\.mlp\.up_proj\.weight"),
        ({"without": ("token_embd.weight",)}, r"missing.*token_embd\.weight"),
        ({"extra": {"blk.0.attn_q.bias": np.zeros(256, np.float32)}}, "missing.*k_proj.bias"),
        ({"extra": {"cls.weight": np.zeros(8, np.float32)}}, r"no use for.*cls\.weight"),
    ],
)
def test_source_wrong_set_of_tensors_is_refused(tmp_path, changes, expected):
    path = write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(ConversionError, match=expected) as caught:
        GgufSource(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("without", [(), ("output_norm.weight",)])
def test_source_name_of_hugging_face_is_no_gguf_name(tmp_path, without):
    extra = {"model.norm.weight": np.ones(256, np.float32)}
    path = write_gguf(tmp_path / "m.gguf", extra=extra, without=without)
    with pytest.raises(ConversionError, match=r"no use for.*: model\.norm\.weight$"):
        GgufSource(path)


@pytest.mark.parametrize("kind", [Ggml.I8, Ggml.F64, Ggml.Q8_K], ids=lambda kind: kind.name)
def test_source_type_that_the_library_cannot_decode_is_named(tmp_path, kind):
    path = write_gguf(tmp_path / "m.gguf", types={"blk.0.ffn_up.weight": kind})
    expected = rf"'blk\.0\.ffn_up\.weight' is of type {kind.name}, which"
    with pytest.raises(UnsupportedModelError, match=expected):
        GgufSource(path)


def test_source_unknown_architecture_is_named_before_its_tensors(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", arch="gemma3", types={"blk.0.ffn_up.weight": Ggml.I8})
    with pytest.raises(UnsupportedModelError, match="architecture 'gemma3'"):
        GgufSource(path)


def test_source_without_a_tokenizer_says_so_with_the_file_name(tmp_path):
    source = GgufSource(write_gguf(tmp_path / "m.gguf", tokenizer=False))
    with pytest.raises(TokenizerError, match=r"m\.gguf: tokenizer\.ggml\.model"):
        _ = source.tokenizer


def test_source_file_that_shrinks_is_an_error_not_a_crash(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    source = GgufSource(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(ConversionError, match="became shorter"):
        source.tensors["model.norm.weight"].read(0, 256)


def test_source_provenance_is_plain_json(tmp_path):
    source = GgufSource(write_gguf(tmp_path / "m.gguf"))
    assert source.provenance == {
        "format": "gguf",
        "metadata": {"general.architecture": "llama"},
    }


def test_source_random_damage_of_the_header_is_one_line_or_nothing(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    whole = path.read_bytes()
    data_start = min(t.data_offset for t in gguf.GGUFReader(path).tensors)
    random = np.random.default_rng(11)
    messages = []
    for _ in range(300):
        damaged = bytearray(whole)
        for at in random.integers(data_start, size=random.integers(1, 4)):
            damaged[at] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            _ = GgufSource(path).tokenizer
        except QllamaError as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert not [m for m in messages if "\n" in m or len(m) > len(str(path)) + 500]


def test_gguf_tokenizer_may_be_another_file_s(tmp_path):
    write_tokenizer(tmp_path)
    path = write_gguf(tmp_path / "m.gguf", tokenizer=False)
    record, blob = open_source(path, SourceOptions(tokenizer=tmp_path)).tokenizer
    assert blob == (tmp_path / "tokenizer.json").read_bytes()
    assert (record.bos_token_id, record.eos_token_ids) == (1, (2,))
