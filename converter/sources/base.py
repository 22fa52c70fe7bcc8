"""The seam between a checkpoint format and the rest of the converter.

Owns the two protocols every source satisfies. Names, shapes and row order are
qllama's own (Hugging Face's) on this side of the seam; knows no file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig, TokenizerConfig

__all__ = ["BlockType", "CheckpointSource", "SourceTensor"]

BlockType = Literal["q8_0", "q4_0"]
"""Weight types that are also ggml's."""


class SourceTensor(Protocol):
    """One tensor of a checkpoint; nothing of it is read before it is asked for."""

    @property
    def name(self) -> str:
        """Canonical name, `model.layers.0.self_attn.q_proj.weight`."""

    @property
    def where(self) -> str:
        """How a message names it: the file, and the checkpoint's own name of the tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,) of a vector, (rows, k) of a matrix."""

    @property
    def source_type(self) -> str:
        """The checkpoint's own name for how it stores the values, `Q4_K`."""

    @property
    def n_bytes(self) -> int:
        """Bytes in the checkpoint."""

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows start..stop-1.

        Parameters
        ----------
        start, stop : int
            Rows in qllama's order; elements of a vector.

        Returns
        -------
        float32, (stop - start, k) or (stop - start,)
            C-contiguous, finite or not as the checkpoint has it.
        """

    @property
    def block_type(self) -> BlockType | None:
        """qllama's weight type whose ggml blocks the rows consist of, or None.

        A matrix of that type can be taken over without decoding, which loses nothing.
        """

    def read_blocks(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Read rows start..stop-1 undecoded; only where `block_type` is not None.

        Parameters
        ----------
        start, stop : int
            Rows in qllama's order.

        Returns
        -------
        uint8, (stop - start, bytes of a row)
            As `qllama.quant.scaled.ScaledCodec.from_ggml_blocks` takes them.
        """


class CheckpointSource(Protocol):
    """A checkpoint that is open for reading and has been checked as a whole."""

    @property
    def config(self) -> ModelConfig:
        """Hyperparameters."""

    @property
    def tokenizer(self) -> tuple[TokenizerConfig, bytes]:
        """Tokenizer record and the blob it describes."""

    @property
    def tensors(self) -> Mapping[str, SourceTensor]:
        """Exactly the tensors of `qllama.tensors.expected_shapes(config)`, in its order."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights come from, as plain JSON values, to be kept in the model file."""
