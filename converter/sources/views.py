"""What checkpoints do to matrices before storing them, undone while they are read.

Owns the lazy views: each is a `SourceTensor` over others, and reads of them only the
rows that it is asked for. Knows no file and no name.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from converter.sources.base import SourceTensor
from qllama.errors import ConversionError

__all__ = [
    "Columns",
    "Grouped",
    "LowRankUpdate",
    "Reordered",
    "RowSlice",
    "Stacked",
    "StoredTwice",
    "Transposed",
    "interleaved_to_half_split",
]

# What a `Transposed` reads at a time, and what it keeps: 64 MiB, a third of a matrix of 7B.
_TRANSPOSED_VALUES = 1 << 20
_GROUP_VALUES = 1 << 24

# Up to so many multiplications OpenBLAS stays on the thread that calls it.
_ONE_THREAD = 1 << 18
_PRODUCT_ROWS = 16


class RowSlice(SourceTensor):
    """Rows start..stop-1 of a tensor: one of the matrices that were fused into it."""

    def __init__(self, tensor: SourceTensor, start: int, stop: int) -> None:
        self._tensor = tensor
        self._start = start
        self.where = f"{tensor.where}, rows {start} to {stop - 1}"
        self.shape = (stop - start, *tensor.shape[1:])
        self.source_type = tensor.source_type
        self.n_bytes = tensor.n_bytes * (stop - start) // tensor.shape[0]

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows `start` to `stop` - 1; see `SourceTensor.read`."""
        return self._tensor.read(self._start + start, self._start + stop)


class Stacked(SourceTensor):
    """Tensors below each other: a matrix that was split by rows."""

    def __init__(self, parts: Sequence[SourceTensor]) -> None:
        self._parts = tuple(parts)
        self.where = parts[0].where
        self.shape = (sum(p.shape[0] for p in parts), *parts[0].shape[1:])
        self.source_type = parts[0].source_type
        self.n_bytes = sum(p.n_bytes for p in parts)

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows `start` to `stop` - 1; see `SourceTensor.read`."""
        pieces = []
        first = 0
        for part in self._parts:
            begin, end = max(start - first, 0), min(stop - first, part.shape[0])
            if begin < end:
                pieces.append(part.read(begin, end))
            first += part.shape[0]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class Columns(SourceTensor):
    """Matrices side by side: one that was split by columns."""

    def __init__(self, parts: Sequence[SourceTensor]) -> None:
        self._parts = tuple(parts)
        self.where = parts[0].where
        self.shape = (parts[0].shape[0], sum(p.shape[1] for p in parts))
        self.source_type = parts[0].source_type
        self.n_bytes = sum(p.n_bytes for p in parts)

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows `start` to `stop` - 1; see `SourceTensor.read`."""
        return np.concatenate([part.read(start, stop) for part in self._parts], axis=1)


class Reordered(SourceTensor):
    """Rows of a tensor in another order.

    Parameters
    ----------
    tensor : SourceTensor
    order : int, (rows,)
        Row i of the view is row order[i] of the tensor. Neighbours should stay near each
        other: what lies between the first and the last of the rows asked for is read too.
    """

    def __init__(self, tensor: SourceTensor, order: npt.NDArray[np.intp]) -> None:
        self._tensor = tensor
        self._order = order
        self.where = tensor.where
        self.shape = tensor.shape
        self.source_type = tensor.source_type
        self.n_bytes = tensor.n_bytes

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows `start` to `stop` - 1; see `SourceTensor.read`."""
        wanted = self._order[start:stop]
        first = int(wanted.min())
        return self._tensor.read(first, int(wanted.max()) + 1)[wanted - first]


class Grouped(SourceTensor):
    """The same few rows of every group of rows: a matrix that was fused group by group.

    Parameters
    ----------
    tensor : SourceTensor
        Whole groups of `group` rows.
    group, first, n : int
        Rows `first` to `first` + `n` - 1 of each group are the view's.
    """

    def __init__(self, tensor: SourceTensor, group: int, first: int, n: int) -> None:
        self._tensor = tensor
        self._group = group
        self._first = first
        self._n = n
        self.where = f"{tensor.where}, rows {first} to {first + n - 1} of every {group}"
        self.shape = (tensor.shape[0] // group * n, *tensor.shape[1:])
        self.source_type = tensor.source_type
        self.n_bytes = tensor.n_bytes // group * n

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows `start` to `stop` - 1; see `SourceTensor.read`."""
        if self._n == 1:
            rows = self._tensor.read(start * self._group, stop * self._group)
            return np.ascontiguousarray(rows[self._first :: self._group])
        pieces = []
        for group in range(start // self._n, (stop - 1) // self._n + 1):
            row = group * self._n
            offset = group * self._group + self._first - row
            pieces.append(
                self._tensor.read(max(start, row) + offset, min(stop, row + self._n) + offset)
            )
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class Transposed(SourceTensor):
    """A matrix that is stored with its columns as rows.

    Whatever rows are read, all of what is stored is gone through. So many are taken at once,
    and kept until each has been asked for: in two groups at most, since threads that share
    the rows out among them do not ask for them in order.
    """

    def __init__(self, tensor: SourceTensor) -> None:
        self._tensor = tensor
        self._lock = threading.Lock()
        # By their number: the rows of a group, and how many are still to be asked for.
        self._groups: dict[int, tuple[npt.NDArray[np.float32], int]] = {}
        self.where = tensor.where
        self.shape = (tensor.shape[1], tensor.shape[0])
        self.source_type = tensor.source_type
        self.n_bytes = tensor.n_bytes
        self._group_rows = max(1, _GROUP_VALUES // max(1, tensor.shape[0]))

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows `start` to `stop` - 1; see `SourceTensor.read`."""
        values = np.empty((stop - start, self.shape[1]), np.float32)
        with self._lock:
            for number in range(start // self._group_rows, (stop - 1) // self._group_rows + 1):
                first = number * self._group_rows
                begin, end = max(start, first), min(stop, first + self._group_rows)
                known = number in self._groups
                group, left = self._groups.pop(number) if known else self._read_group(first)
                values[begin - start : end - start] = group[begin - first : end - first]
                if left > end - begin:
                    self._groups[number] = group, left - (end - begin)
                while len(self._groups) > 2:
                    del self._groups[next(iter(self._groups))]
        return values

    def _read_group(self, first: int) -> tuple[npt.NDArray[np.float32], int]:
        rows, k = self.shape
        last = min(first + self._group_rows, rows)
        group = np.empty((last - first, k), np.float32)
        step = max(1, _TRANSPOSED_VALUES // rows)
        for i in range(0, k, step):
            group[:, i : i + step] = self._tensor.read(i, min(i + step, k))[:, first:last].T
        return group, last - first


class StoredTwice(SourceTensor):
    """A tensor of which the checkpoint has a copy: reading it reads and compares both.

    Parameters
    ----------
    tensor, copy : SourceTensor
        Of one shape.
    differs : str
        The error where they differ.
    """

    def __init__(self, tensor: SourceTensor, copy: SourceTensor, differs: str) -> None:
        self._tensor = tensor
        self._copy = copy
        self._differs = differs
        self.where = tensor.where
        self.shape = tensor.shape
        self.source_type = tensor.source_type
        self.n_bytes = tensor.n_bytes

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Decode rows `start` to `stop` - 1; see `SourceTensor.read`.

        Raises
        ------
        ConversionError
            When these rows are others in the copy.
        """
        values = self._tensor.read(start, stop)
        if not np.array_equal(values, self._copy.read(start, stop), equal_nan=True):
            raise ConversionError(self._differs)
        return values


class LowRankUpdate(SourceTensor):
    """A matrix plus `scale` times `left` @ `right`, in float32.

    Parameters
    ----------
    tensor : SourceTensor
        (rows, k).
    left, right : SourceTensor
        (rows, r) and (r, k).
    scale : float
    origin : str
        Where the update comes from, for messages.
    """

    def __init__(
        self,
        tensor: SourceTensor,
        left: SourceTensor,
        right: SourceTensor,
        scale: float,
        origin: str,
    ) -> None:
        self._tensor = tensor
        self._left = left
        self._right = right
        self._scale = np.float32(scale)
        self.where = f"{tensor.where}, with {origin}"
        self.shape = tensor.shape
        self.source_type = f"{tensor.source_type} + r={right.shape[0]}"
        self.n_bytes = tensor.n_bytes

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Compute rows `start` to `stop` - 1; see `SourceTensor.read`."""
        right = self._right.read(0, self._right.shape[0])
        update = _product(self._left.read(start, stop), right)
        update *= self._scale
        update += self._tensor.read(start, stop)
        return update


def _product(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Multiply matrices in blocks that BLAS does not share out to threads of its own.

    Those wait for the next product in a loop, on the cores that the conversion's need.
    """
    product = np.empty((left.shape[0], right.shape[1]), np.float32)
    width = max(1, _ONE_THREAD // (_PRODUCT_ROWS * right.shape[0]))
    for i in range(0, product.shape[0], _PRODUCT_ROWS):
        rows = slice(i, i + _PRODUCT_ROWS)
        for j in range(0, product.shape[1], width):
            columns = slice(j, j + width)
            np.matmul(left[rows], right[:, columns], out=product[rows, columns])
    return product


def interleaved_to_half_split(rows: int, head_dim: int) -> npt.NDArray[np.intp]:
    """Order that takes rows of q or k from Meta's layout to Hugging Face's.

    Meta's checkpoints (and GGUF's `llama`) rotate neighbouring rows: row 2 i + j of a head
    is Hugging Face's row j head_dim / 2 + i, j in {0, 1}.

    Returns
    -------
    int, (rows,)
        As `Reordered` takes it.
    """
    heads = np.arange(rows, dtype=np.intp).reshape(-1, head_dim // 2, 2)
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(-1)
