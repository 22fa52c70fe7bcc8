"""Small random models in genuine GGUF files, written by the `gguf` library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Ggml

# Not a multiple of 16, so that the last tile is padded.
VOCAB_SIZE = 270
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, LAYERS = 256, 4, 2, 64, 512, 2

# Where the float16 scales of a block stand, for types that the library decodes but cannot encode.
_HALF_SCALES = {
    Ggml.Q2_K: (80, 82),
    Ggml.Q3_K: (108,),
    Ggml.Q4_K: (0, 2),
    Ggml.Q5_K: (0, 2),
    Ggml.Q6_K: (208,),
    Ggml.IQ4_XS: (0,),
}


def byte_alphabet() -> list[str]:
    """List the 256 characters that byte-level BPE writes bytes as."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (256 + i for i in range(256 - len(printable)))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def write_gguf(
    path: Path,
    *,
    arch: str = "llama",
    tied: bool = True,
    types: Mapping[str, Ggml] | None = None,
    matrices: Ggml = Ggml.F32,
    extra: Mapping[str, np.ndarray] | None = None,
    without: tuple[str, ...] = (),
    keys: Mapping[str, Any] | None = None,
    tokenizer: bool = True,
    seed: int = 0,
    context_length: int = 128,
    tensors_a_part: int = 0,
) -> Path:
    """Write a model of two layers; return the path of its file, or of the first of its parts.

    Parameters
    ----------
    types : mapping, optional
        GGUF tensor name to its type; other matrices get `matrices`, vectors F32.
    extra : mapping, optional
        More tensors, as float32 in GGUF's row order.
    without : tuple of str
        Tensors that are left out.
    keys : mapping, optional
        More metadata keys `ARCH.*`.
    context_length : int
        The model's own.
    tensors_a_part : int
        Split the file after every so many tensors; 0 does not.
    """
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=tensors_a_part)
    writer.add_context_length(context_length)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in (keys or {}).items():
        writer.add_key_value(f"{arch}.{key}", value, gguf.GGUFValueType.get_type(value))
    if tokenizer:
        _add_tokenizer(writer)
    random = np.random.default_rng(seed)
    tensors = {
        name: random.standard_normal(shape, np.float32) * np.float32(0.05)
        for name, shape in _shapes(arch, tied).items()
    }
    for name, values in {**tensors, **(extra or {})}.items():
        if name not in without:
            kind = (types or {}).get(name, matrices if values.ndim == 2 else Ggml.F32)
            writer.add_tensor(name, _stored(values, kind, random), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))
    return parts[0] if tensors_a_part else path


def _shapes(arch: str, tied: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB_SIZE, HIDDEN)}
    for i in range(LAYERS):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (HIDDEN,),
            "attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
            "attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
            "ffn_norm.weight": (HIDDEN,),
            "ffn_gate.weight": (INTERMEDIATE, HIDDEN),
            "ffn_up.weight": (INTERMEDIATE, HIDDEN),
            "ffn_down.weight": (HIDDEN, INTERMEDIATE),
        }
        if arch == "qwen2":
            layer |= biases("attn_q", "attn_k", "attn_v")
        if arch == "qwen3":
            layer |= {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    shapes["output_norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["output.weight"] = (VOCAB_SIZE, HIDDEN)
    return shapes


def biases(*names: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the biases of some projections of a layer."""
    rows = {
        "attn_q": HEADS * HEAD_DIM,
        "attn_k": KV_HEADS * HEAD_DIM,
        "attn_v": KV_HEADS * HEAD_DIM,
        "attn_output": HIDDEN,
        "ffn_gate": INTERMEDIATE,
        "ffn_up": INTERMEDIATE,
        "ffn_down": HIDDEN,
    }
    return {f"{name}.bias": (rows[name],) for name in names}


def _stored(values: np.ndarray, kind: Ggml, random: np.random.Generator) -> np.ndarray:
    try:
        return gguf.quantize(values, kind)
    except NotImplementedError:
        pass
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    shape = (*values.shape[:-1], values.shape[-1] // block, block_bytes)
    blocks = random.integers(256, size=shape, dtype=np.uint8)
    for at in _HALF_SCALES.get(kind, ()):
        scales = (random.random(shape[:-1], np.float32) * np.float32(0.01)).astype("<f2")
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*values.shape[:-1], -1)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merged = ["he", "ll", "hell", "hello", "the", "Ġhello", "Ġthe"]
    tokens = [*specials, *byte_alphabet(), *merged]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3)
    writer.add_token_types(kinds)
    writer.add_token_merges(["h e", "l l", "he ll", "hell o", "t he", "Ġ hello", "Ġ the"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def dequantized(path: Path) -> dict[str, np.ndarray]:
    """Decode all tensors with the library alone, in GGUF's names and row order."""
    return {
        t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
        for t in gguf.GGUFReader(path).tensors
    }


def to_half_split(values: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows as the public converters from Meta's row order to Hugging Face's do."""
    pairs = values.reshape(heads, HEAD_DIM // 2, 2, *values.shape[1:])
    return np.swapaxes(pairs, 1, 2).reshape(values.shape)
