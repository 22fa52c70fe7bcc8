"""What pickles in PyTorch's files are made of: tensors, storages, and calls that build them.

Owns the names that a state dict may ask for and what qllama makes of each: plain records,
checked to lie within their storages. Knows no opcode and no container format.

Reference: `torch/_utils.py` (`_rebuild_tensor_v2`, ...), `torch/_tensor.py`
(`_reduce_ex_internal`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from converter.wording import quoted

__all__ = [
    "BUILDERS",
    "DTYPES",
    "NAMES",
    "Global",
    "Storage",
    "TensorRecord",
    "WrongArguments",
    "storage_of",
]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype("<f8"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
"""PyTorch's name of a type to numpy's type, for those that are read."""

_STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# Checkpoints that were saved on a GPU by early versions say so in the name.
_STORAGE_TYPES = {
    **{f"torch.{name}": dtype for name, dtype in _STORAGES.items()},
    **{f"torch.cuda.{name}": dtype for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": "uint8",
}
_DTYPE_NAMES = {f"torch.{name}": name for name in DTYPES}
_MAX_DIMENSIONS = 8
_TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes that tensors are views of; `key` is what the container calls them."""

    key: str
    dtype: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor: element (i, j) is element `offset + i strides[0] + j strides[1]` of `storage`.

    Parameters
    ----------
    storage : Storage
    dtype : str
        A key of `DTYPES`.
    offset : int
        In elements, as the strides.
    shape, strides : tuple of int
        Of equal length; all elements lie within the storage.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Global:
    """A name that stands for a class or function, which is never looked up."""

    name: str


class WrongArguments(Exception):
    """A call that does not build what its name says; tells with what it was called."""


def storage_of(identity: Any) -> Storage:
    """Return the storage that a persistent id stands for.

    Parameters
    ----------
    identity : object
        What `persistent_id` in `torch/serialization.py` returns.

    Raises
    ------
    WrongArguments
        When it is none of a storage.
    """
    match identity:
        # The sixth item is a view of another storage, which only PyTorch 0.x wrote.
        case ("storage", Global(name=kind), str(key), _, int(numel), *rest) if (
            kind in _STORAGE_TYPES and _is_count(numel) and rest in ([], [None])
        ):
            dtype = _STORAGE_TYPES[kind]
            return Storage(key, dtype, numel * DTYPES[dtype].itemsize)
        case ("module", *_):
            raise WrongArguments("a whole module and its Python code")
    raise WrongArguments("something that is not a storage")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensor(arguments: tuple[Any, ...]) -> TensorRecord:
    """Build what `_rebuild_tensor`, `_v2` and `_v3` do: the fifth and sixth arguments train."""
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides), *more):
            pass
        case _:
            raise WrongArguments("arguments that are not those of a tensor")
    dtype = storage.dtype
    for extra in more[2:]:
        if isinstance(extra, Global) and extra.name in _DTYPE_NAMES:
            dtype = _DTYPE_NAMES[extra.name]
        elif extra:
            raise WrongArguments("a negative or conjugate view")
    if not all(_is_count(n) for n in (offset, *shape, *strides)):
        raise WrongArguments("a negative or absurd shape, stride or offset")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise WrongArguments(f"{len(shape)} dimensions and {len(strides)} strides")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    needed = (last + 1) * DTYPES[dtype].itemsize if math.prod(shape) else 0
    if needed > storage.n_bytes:
        raise WrongArguments(
            f"shape {quoted(shape)} and strides {quoted(strides)} at {offset}, "
            f"which need {needed} bytes of a storage of {storage.n_bytes}"
        )
    return TensorRecord(storage, dtype, offset, shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> TensorRecord:
    match arguments:
        case (TensorRecord() as record, *_):
            return record
    raise WrongArguments("something that is not a tensor")


def _subclass(arguments: tuple[Any, ...]) -> TensorRecord:
    match arguments:
        case (Global(name=function), Global(name=kind), tuple(inner), _) if (
            kind in _TENSOR_CLASSES and function in (_TENSOR, _TENSOR_V2, _TENSOR_V3)
        ):
            return _tensor(inner)
    raise WrongArguments("another class than torch.Tensor")


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise WrongArguments("arguments")
    return {}


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    match arguments:
        case (tuple(dims) | list(dims),):
            # Of a long list, each of many calls in a small pickle would make a copy.
            if len(dims) > _MAX_DIMENSIONS:
                raise WrongArguments(f"{len(dims)} dimensions")
            return tuple(dims)
    raise WrongArguments("something that is not a shape")


_TENSOR = "torch._utils._rebuild_tensor"
_TENSOR_V2 = "torch._utils._rebuild_tensor_v2"
_TENSOR_V3 = "torch._utils._rebuild_tensor_v3"
BUILDERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    _TENSOR: _tensor,
    _TENSOR_V2: _tensor,
    _TENSOR_V3: _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered_dict,
}
"""Name of a function to what stands in for it; called with the arguments."""

NAMES = frozenset({*BUILDERS, *_STORAGE_TYPES, *_DTYPE_NAMES, *_TENSOR_CLASSES})
"""Every name that a pickle may mention."""
