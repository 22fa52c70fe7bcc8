"""A small `.qlm` file of every weight type, and one put together by hand.

`assemble` shares no code with `qllama.format`, so the two can check each other.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from qllama.config import ModelConfig, TokenizerConfig
from qllama.format import QlmWriter, TensorSpec
from qllama.quant.types import matrix_n_bytes, vector_n_bytes

DATA_OFFSET = 65536

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=32,
    hidden_size=40,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
)
TOKENIZER = TokenizerConfig("tokenizers", bos_token_id=1, eos_token_ids=(2, 3), chat_template="é{}")
BLOB = b'{"a tokenizer": 1}'
RECIPE = {"preset": "q4", "head": ["q8_0", None, 0.5]}
PROVENANCE = {"files": [{"name": "tiny.gguf", "n_bytes": 2**40}]}
SPECS = (
    TensorSpec("embed", "q8_0", (32, 40)),
    TensorSpec("norm", "f32", (3,)),
    TensorSpec("norm.half", "f16", (5,)),
    TensorSpec("norm.brain", "bf16", (7,)),
    TensorSpec("up", "q4", (17, 33)),
    TensorSpec("down", "q4_0", (1, 1)),
    TensorSpec("plain", "f32", (2, 3)),
    TensorSpec("half", "f16", (16, 32)),
    TensorSpec("brain", "bf16", (1, 32)),
)


def n_bytes(spec: TensorSpec) -> int:
    """Bytes that a tensor takes."""
    size = vector_n_bytes if len(spec.shape) == 1 else matrix_n_bytes
    return size(spec.type, *spec.shape)


def contents(spec: TensorSpec) -> np.ndarray:
    """Seeded bytes of a tensor, none of them zero."""
    seed = zlib.crc32(spec.name.encode())
    return np.random.default_rng(seed).integers(1, 256, n_bytes(spec), dtype=np.uint8)


def writer(path: Path, **changes: Any) -> QlmWriter:
    """Return a writer of the sample with some arguments changed."""
    arguments = {
        "config": CONFIG,
        "tokenizer": TOKENIZER,
        "tokenizer_blob": BLOB,
        "tensors": SPECS,
        "recipe": RECIPE,
        "provenance": PROVENANCE,
    }
    return QlmWriter(path, **(arguments | changes))


def write_sample(path: Path) -> Path:
    """Write the whole sample."""
    with writer(path) as file:
        for spec in SPECS:
            file.write(spec.name, contents(spec))
    return path


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header's document and the data section of a file."""
    length, data_offset = struct.unpack_from("<QQ", data, 16)
    return json.loads(data[64 : 64 + length]), data[data_offset:]


def assemble(
    header: dict[str, Any] | bytes,
    body: bytes,
    *,
    magic: bytes = b"\x89QLM\r\n\x1a\n",
    version: int = 1,
    length: int | None = None,
    data_offset: int = DATA_OFFSET,
    file_size: int | None = None,
    reserved: bytes = bytes(24),
    filler: bytes = b"\0",
) -> bytes:
    """Put a file together from its parts, with a header checksum that is right."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    room = -(-(64 + len(text)) // DATA_OFFSET) * DATA_OFFSET
    size = room + len(body) if file_size is None else file_size
    offset = room if data_offset == DATA_OFFSET else data_offset
    sizes = struct.pack("<QQQ", len(text) if length is None else length, offset, size)
    rest = (sizes + reserved + text).ljust(room - 16, filler)
    start = magic + struct.pack("<I", version)
    checksum = zlib.crc32(start + bytes(4) + rest)
    return start + struct.pack("<I", checksum) + rest + body
