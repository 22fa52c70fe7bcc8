"""Row slabs: cutting tensors in pieces and turning pieces into stored bytes.

Owns what happens between a source tensor and the writer, on several threads but
in order, with a bounded number of slabs in memory. Knows no file.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from converter.feedback import Columns
from converter.in_order import in_order
from converter.sources.base import BlockType, SourceTensor
from qllama.errors import ConversionError
from qllama.format.spec import TensorSpec
from qllama.kernels.quantize import quantize_measured
from qllama.kernels.quantize_error import quantization_error
from qllama.quant import BLOCK, TILE_ROWS, BlockCodec, codec
from qllama.quant.feedback import with_feedback

__all__ = ["Encoded", "Slab", "carried_type", "encoded", "prepare", "slabs_of"]

# 4 MiB as float32: enough that Python's share of the time is nothing.
_SLAB_VALUES = 1 << 20
# Feedback takes some calls of numpy for each column, whatever the rows.
_FEEDBACK_VALUES = 1 << 23


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows as they are stored.

    Parameters
    ----------
    data : uint8, (bytes,)
        The concatenation over a tensor's slabs is the tensor's storage.
    error : float64, (tiles, 5), or None
        As `quantize_measured` gives it; None where nothing is lost.
    """

    data: npt.NDArray[np.uint8]
    error: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Slab:
    """Rows start..stop-1 of a tensor, a whole number of tiles unless they are its last.

    Parameters
    ----------
    columns : Columns or None
        What is known of the tensor's.
    fast : bool
        As `quantize` takes it.
    """

    tensor: SourceTensor
    spec: TensorSpec
    start: int
    stop: int
    columns: Columns | None = None
    fast: bool = False

    @property
    def n_source_bytes(self) -> int:
        """Bytes of these rows in the checkpoint."""
        return self.tensor.n_bytes * (self.stop - self.start) // self.tensor.shape[0]

    @property
    def is_last(self) -> bool:
        """Whether the tensor ends with it."""
        return self.stop == self.tensor.shape[0]

    def encode(self) -> Encoded:
        """Read the rows and return them as they are stored.

        Raises
        ------
        ConversionError
            When the rows hold what their type cannot; names the tensor.
        """
        try:
            carried = carried_type(self.tensor, self.spec)
            if carried is not None:
                scaled = codec(carried)
                blocks = self.tensor.read_blocks(self.start, self.stop)
                return Encoded(scaled.pack(*scaled.from_ggml_blocks(blocks)))
            values = self.tensor.read(self.start, self.stop)
            if values.ndim == 2:
                return Encoded(*self._quantized(values))
            if not np.isfinite(values).all():
                raise ConversionError("expected finite numbers, found a NaN or an infinity")
            return Encoded(values.astype("<f4").view(np.uint8))
        except ConversionError as e:
            raise ConversionError(f"{self.tensor.where}, rows from {self.start}: {e}") from None

    def _quantized(
        self, values: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
        """What `quantize_measured` returns, feedback considered."""
        type_name, columns = self.spec.type, self.columns
        importance = None if columns is None else columns.importance
        data, errors = quantize_measured(type_name, values, 1, importance, fast=self.fast)
        factor = None if columns is None else columns.factor
        if factor is None or not isinstance(codec(type_name), BlockCodec):
            return data, errors
        data = with_feedback(type_name, values, data, factor)
        return data, quantization_error(type_name, values, data)


def carried_type(tensor: SourceTensor, spec: TensorSpec) -> BlockType | None:
    """Type of the blocks of `tensor` that `spec` takes over; None where rows are decoded."""
    return tensor.block_type if tensor.block_type == spec.type else None


def prepare(type_name: str, weighted: bool) -> None:
    """Have the quantizer of a type ready: the first time on a machine it is compiled.

    Parameters
    ----------
    type_name : str
    weighted : bool
        Whether the one that weighs columns by their importance.
    """
    zeros = np.zeros((TILE_ROWS, BLOCK), np.float32)
    importance = np.ones(BLOCK, np.float32) if weighted else None
    quantize_measured(type_name, zeros, 1, importance)


def slabs_of(
    tensor: SourceTensor,
    spec: TensorSpec,
    columns: Columns | None = None,
    *,
    fast: bool = False,
) -> Iterator[Slab]:
    """Cut a tensor; a vector is one slab.

    Parameters
    ----------
    tensor : SourceTensor
    spec : TensorSpec
        How it is to be stored.
    columns : Columns or None
        What is known of its columns.
    fast : bool
        As `quantize` takes it.
    """
    rows = tensor.shape[0]
    step = rows
    has_feedback = columns is not None and columns.factor is not None
    values = _FEEDBACK_VALUES if has_feedback else _SLAB_VALUES
    if len(tensor.shape) == 2:
        tiles = max(1, values // math.prod((TILE_ROWS, tensor.shape[1])))
        step = tiles * TILE_ROWS
    for start in range(0, rows, step):
        yield Slab(tensor, spec, start, min(start + step, rows), columns, fast)


def encoded(slabs: Iterable[Slab], n_threads: int) -> Generator[tuple[Slab, Encoded], None, None]:
    """Encode `slabs` on `n_threads` threads; yield each with what became of it, in order.

    Closing the generator early waits for the few slabs that are under way.
    """
    yield from in_order((partial(_with_result, slab) for slab in slabs), n_threads)


def _with_result(slab: Slab) -> tuple[Slab, Encoded]:
    return slab, slab.encode()
