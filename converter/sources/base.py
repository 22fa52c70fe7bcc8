"""The seam between a checkpoint format and the rest of the converter.

Owns what every source satisfies. Names, shapes and row order are qllama's own
(Hugging Face's) on this side of the seam; knows no file format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig, TokenizerConfig

__all__ = ["BlockType", "CheckpointSource", "OpenedSource", "SourceTensor"]

BlockType = Literal["q8_0", "q4_0"]
"""Weight types that are also ggml's."""


class SourceTensor(ABC):
    """A vector or matrix of a checkpoint; nothing of it is read before it is asked for.

    Attributes
    ----------
    where : str
        How a message names it: the file, and the checkpoint's own name of the tensor.
    shape : tuple of int
        (n,) of a vector, (rows, k) of a matrix.
    source_type : str
        The checkpoint's own name for how it stores the values, `Q4_K`, `BF16`.
    n_bytes : int
        Bytes in the checkpoint.
    block_type : str or None
        qllama's weight type whose ggml blocks the rows consist of. A matrix of that type
        can be taken over without decoding, which loses nothing.
    """

    where: str
    shape: tuple[int, ...]
    source_type: str
    n_bytes: int
    block_type: BlockType | None = None

    @abstractmethod
    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows start..stop-1; called from several threads at once.

        Parameters
        ----------
        start, stop : int
            Rows in qllama's order; elements of a vector.

        Returns
        -------
        float32, (stop - start, k) or (stop - start,)
            C-contiguous, finite or not as the checkpoint has it.

        Raises
        ------
        ConversionError
            When the checkpoint cannot be read; names the tensor.
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
        raise NotImplementedError(f"{self.where} does not consist of ggml blocks")


class CheckpointSource(Protocol):
    """A checkpoint that is open for reading and has been checked as a whole."""

    @property
    def config(self) -> ModelConfig:
        """Hyperparameters."""

    @property
    def tokenizer(self) -> tuple[TokenizerConfig, bytes]:
        """Tokenizer record and the blob it describes."""

    def load_tokenizer(
        self, vocab_size: int, trained: Path | None
    ) -> tuple[TokenizerConfig, bytes]:
        """Load the tokenizer of a model that was trained further.

        Parameters
        ----------
        vocab_size : int
            Rows of its embedding.
        trained : Path or None
            Where its tokenizer is, unless the user has named another; None for `tokenizer`.
        """

    @property
    def tensors(self) -> Mapping[str, SourceTensor]:
        """Exactly the tensors of `qllama.tensors.expected_shapes(config)`, in its order."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that hold the weights, for their hashes."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What the checkpoint says of itself, as plain JSON values; its format at least."""


@dataclass(frozen=True)
class OpenedSource:
    """A `CheckpointSource` put together from its parts.

    Parameters
    ----------
    load_tokenizer : callable
        See `CheckpointSource`; also called once, when the tokenizer is first asked for.
    """

    config: ModelConfig
    load_tokenizer: Callable[[int, Path | None], tuple[TokenizerConfig, bytes]]
    tensors: Mapping[str, SourceTensor]
    files: Sequence[Path]
    provenance: dict[str, Any]

    @cached_property
    def tokenizer(self) -> tuple[TokenizerConfig, bytes]:
        """Tokenizer record and the blob it describes."""
        return self.load_tokenizer(self.config.vocab_size, None)
