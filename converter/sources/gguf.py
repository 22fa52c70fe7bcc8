"""GGUF files as a checkpoint source.

Owns the reading of tensor data: row slabs in qllama's row order, decoded by the
`gguf` library or taken over as blocks. The header and the model config are
read by the modules beside this one; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from converter.sources.base import BlockType, SourceTensor
from converter.sources.gguf_config import config_from_gguf
from converter.sources.gguf_header import GgufTensorInfo
from converter.sources.gguf_parts import read_parts
from converter.sources.options import SourceOptions
from converter.sources.reading import fill
from converter.sources.views import interleaved_to_half_split
from converter.tensor_map import check_tensors, from_gguf
from converter.tokenizer_files import tokenizer_from_path
from converter.vocabularies.gguf_fields import tokenizer_from_gguf
from converter.wording import quoted
from qllama.config import ModelConfig, TokenizerConfig
from qllama.errors import ConversionError, TokenizerError, UnsupportedModelError
from qllama.tensors import ROPE_DIVISORS, expected_shapes

__all__ = ["GgufSource", "open_checkpoint"]

# ggml's types whose codes and scales are also qllama's, in another order.
_SAME_BLOCKS: dict[GGMLQuantizationType, BlockType] = {
    GGMLQuantizationType.Q8_0: "q8_0",
    GGMLQuantizationType.Q4_0: "q4_0",
}


def open_checkpoint(path: Path, options: SourceOptions) -> GgufSource:
    """Open the GGUF file at `path`; see `GgufSource`."""
    return GgufSource(path, options.tokenizer)


class GgufSource:
    """A GGUF file, checked as a whole when it is opened.

    Parameters
    ----------
    path : Path
        The file, or one of the parts it was split in; they must not change while the source
        is in use.
    tokenizer : Path or None
        Where to take the tokenizer from, instead of the file.

    Raises
    ------
    ConversionError
        When it is no GGUF, is damaged, or lacks a tensor or key.
    UnsupportedModelError
        When the model needs what qllama does not compute.
    """

    def __init__(self, path: Path, tokenizer: Path | None = None) -> None:
        self.path = path
        self._tokenizer = tokenizer
        header, self.files = read_parts(path)
        self._metadata = header.metadata
        names, unknown = from_gguf(header.tensors)
        found = {canonical: GgufTensor(header.tensors[name]) for canonical, name in names.items()}
        config = config_from_gguf(path, header, rope_divisors=ROPE_DIVISORS in found)
        for tensor in found.values():
            tensor.check_decodable()
        if ROPE_DIVISORS in found and not _divides(found[ROPE_DIVISORS]):
            del found[ROPE_DIVISORS]
            config = replace(config, rope_scaling=None)
        expected = expected_shapes(config)
        check_tensors(path, {name: t.shape for name, t in found.items()}, expected, unknown)
        if config.model_type == "llama":
            _unpermute(found, config)
        self.config: ModelConfig = config
        self.tensors: Mapping[str, GgufTensor] = {name: found[name] for name in expected}

    @cached_property
    def tokenizer(self) -> tuple[TokenizerConfig, bytes]:
        """Tokenizer record and blob, built from the vocabulary in the metadata.

        Raises
        ------
        TokenizerError
            When there is none, or one that qllama cannot rebuild.
        """
        return self.load_tokenizer(self.config.vocab_size, None)

    def load_tokenizer(
        self, vocab_size: int, trained: Path | None
    ) -> tuple[TokenizerConfig, bytes]:
        """Load the tokenizer of a model that was trained further; see `CheckpointSource`."""
        if (path := self._tokenizer or trained) is not None:
            roles = ("bos_token_id", "eos_token_id")
            declared = {role: self._metadata.get(f"tokenizer.ggml.{role}") for role in roles}
            return tokenizer_from_path(path, vocab_size, declared)
        try:
            return tokenizer_from_gguf(self._metadata)
        except TokenizerError as e:
            raise TokenizerError(f"{self.path}: {e}") from None

    @property
    def provenance(self) -> dict[str, Any]:
        """What the file says of itself, `general.*` of the metadata without its long lists."""
        general = {
            key: value
            for key, value in self._metadata.items()
            if key.startswith("general.") and isinstance(value, (str, int))
        }
        return {"format": "gguf", "metadata": general}


class GgufTensor(SourceTensor):
    """One tensor of a GGUF file; see `base.SourceTensor`.

    Parameters
    ----------
    info : GgufTensorInfo
        Its entry in the file's table.
    """

    def __init__(self, info: GgufTensorInfo) -> None:
        self.where = f"{info.path}: tensor {quoted(info.name)}"
        self.shape = info.shape
        self.source_type = info.type.name
        self.n_bytes = info.n_bytes
        self.block_type = _SAME_BLOCKS.get(info.type) if len(info.shape) == 2 else None
        self.row_order: npt.NDArray[np.intp] | None = None
        self._info = info

    def check_decodable(self) -> None:
        """Try the type on one block of zeros, so that it is not found out halfway.

        Raises
        ------
        UnsupportedModelError
            When the `gguf` library cannot dequantize it; names tensor and type.
        """
        try:
            dequantize(np.zeros(GGML_QUANT_SIZES[self._info.type][1], np.uint8), self._info.type)
        except NotImplementedError:
            raise UnsupportedModelError(
                f"{self.where} is of type {self.source_type}, which the gguf library cannot "
                "dequantize"
            ) from None

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows `start` to `stop` - 1; see `base.SourceTensor.read`."""
        # Damaged scales decode to infinities; whoever takes the values checks for those.
        with np.errstate(all="ignore"):
            if len(self.shape) == 1:
                values = dequantize(self._bytes(0, self.n_bytes), self._info.type)
                values = values if self.row_order is None else values[self.row_order]
                values = values[start:stop]
            else:
                values = dequantize(self.read_blocks(start, stop), self._info.type)
        return np.ascontiguousarray(values, np.float32)

    def read_blocks(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Read rows `start` to `stop` - 1 undecoded; see `base.SourceTensor.read_blocks`."""
        row_bytes = self.n_bytes // self.shape[0]
        wanted = np.arange(start, stop) if self.row_order is None else self.row_order[start:stop]
        # Permuted rows stay within their head, so the rows between are few.
        first, last = int(wanted.min()), int(wanted.max())
        raw = self._bytes(first * row_bytes, (last + 1 - first) * row_bytes)
        rows = raw.reshape(-1, row_bytes)
        return rows if self.row_order is None else rows[wanted - first]

    def _bytes(self, start: int, n_bytes: int) -> npt.NDArray[np.uint8]:
        """Read some of the tensor's bytes."""
        raw = np.empty(n_bytes, np.uint8)
        fill(self.where, self._info.path, [(self._info.offset + start, raw.data)])
        return raw


def _divides(divisors: GgufTensor) -> bool:
    """Whether any rotary frequency is changed; Llama 3.0 files carry ones."""
    values = divisors.read(0, divisors.shape[0])
    if not (np.isfinite(values) & (values > 0)).all():
        raise ConversionError(f"{divisors.where}: expected positive numbers")
    return bool((values != 1.0).any())


def _unpermute(tensors: Mapping[str, GgufTensor], config: ModelConfig) -> None:
    """Give q and k the row order of Hugging Face's checkpoints."""
    for name, tensor in tensors.items():
        if ".self_attn.q_proj." in name or ".self_attn.k_proj." in name:
            tensor.row_order = interleaved_to_half_split(tensor.shape[0], config.head_dim)
