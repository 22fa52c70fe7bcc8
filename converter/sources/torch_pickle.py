"""The pickles in PyTorch's files, read without running anything.

Owns a small pickle machine: it knows the opcodes and the names that a state dict is made
of, builds plain containers and records of tensors from them, and refuses everything else
by name. Nothing is imported and nothing is called that a file names. Knows no container
format and reads no weights.

References: `torch/_utils.py` (`_rebuild_tensor_v2`, ...), `torch/serialization.py`
(`persistent_id`), Python's `pickletools` for the opcodes.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import ml_dtypes
import numpy as np

from converter.wording import quoted, shown
from qllama.errors import ConversionError

__all__ = ["DTYPES", "Storage", "TensorRecord", "unpickle"]

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
    **{
        f"{module}.{name}": t for name, t in _STORAGES.items() for module in ("torch", "torch.cuda")
    },
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
class _Global:
    """A name that stands for a class or function, which is never looked up."""

    name: str


def unpickle(where: str, stream: BinaryIO) -> Any:
    """Read one pickle.

    Parameters
    ----------
    where : str
        For messages: the file.
    stream : binary stream
        Read to the pickle's end and no further.

    Returns
    -------
    object
        Of dict, list, tuple, str, int, float, bool, None and `TensorRecord`; dicts have
        keys of str and int. Never to be shown as a whole: what refers to the same list
        again and again is short in a pickle and endless in print.

    Raises
    ------
    ConversionError
        When the pickle is damaged, or asks for anything else; names what it asks for.
    """
    return _Machine(where).run(stream)


class _Machine:
    """The stack and memo of one pickle."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        # Not a list: a pickle may number an entry 2**32 - 1.
        self._memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        # Of genops, of an empty stack, of a memo entry that is not there.
        except (ValueError, IndexError, KeyError) as e:
            self._refuse(f"its pickle is damaged: {quoted(str(e))}")
        self._refuse("its pickle is damaged: it has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE"
                | "SHORT_BINUNICODE" | "SHORT_BINSTRING" | "BINSTRING"
            ):  # fmt: skip
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                self._marks.append(stack)
                self._stack = []
            case "TUPLE":
                self._stack = self._marks.pop()
                self._stack.append(tuple(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(name[-1])
                items = tuple(stack.pop() for _ in range(n))
                stack.append(items[::-1])
            case "APPEND":
                item = stack.pop()
                self._extend([item])
            case "APPENDS":
                self._stack = self._marks.pop()
                self._extend(stack)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._update([key, value])
            case "SETITEMS":
                self._stack = self._marks.pop()
                self._update(stack)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(self._known(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if not (isinstance(module, str) and isinstance(attribute, str)):
                    self._refuse("its pickle asks for a name that is not text")
                stack.append(self._known(f"{module}.{attribute}"))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._call(function, arguments))
            case "BUILD":
                # Attributes of a state dict (`_metadata`): versions of modules.
                stack.pop()
                if not isinstance(stack[-1], dict):
                    self._refuse(f"its pickle sets attributes of {_kind(stack[-1])}")
            case _:
                used = name if argument is None else f"{name} {quoted(argument)}"
                self._refuse(f"its pickle uses the opcode {used}, which no state dict needs")

    def _refuse(self, found: str) -> NoReturn:
        raise ConversionError(
            f"{self._where}: {found}; expected tensors by name, as "
            "torch.save(model.state_dict(), ...) writes them"
        )

    def _known(self, name: str) -> _Global:
        if not (
            name in _BUILDERS
            or name in _STORAGE_TYPES
            or name in _DTYPE_NAMES
            or name in _TENSOR_CLASSES
        ):
            self._refuse(f"its pickle asks for {shown(name)}, which is refused and was not run")
        return _Global(name)

    def _extend(self, items: Sequence[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            self._refuse(f"its pickle appends to {_kind(target)}")
        target.extend(items)

    def _update(self, items: Sequence[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            self._refuse(f"its pickle sets items of {_kind(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Also because hashing a tuple a million deep would overflow the C stack.
            if not isinstance(key, str | int):
                self._refuse(f"its pickle has a key that is {_kind(key)}")
            target[key] = value

    def _storage(self, identity: Any) -> Storage:
        match identity:
            # The sixth item is a view of another storage, which only PyTorch 0.x wrote.
            case ("storage", _Global(name=kind), str(key), _, int(numel), *rest) if (
                kind in _STORAGE_TYPES and _is_count(numel) and rest in ([], [None])
            ):
                dtype = _STORAGE_TYPES[kind]
                return Storage(key, dtype, numel * DTYPES[dtype].itemsize)
            case ("module", *_):
                self._refuse("it is a whole pickled module with its Python code")
        self._refuse("its pickle names a storage in a way that PyTorch does not")

    def _call(self, function: Any, arguments: Any) -> Any:
        builder = _BUILDERS.get(function.name) if isinstance(function, _Global) else None
        if builder is None or not isinstance(arguments, tuple):
            called = function.name if isinstance(function, _Global) else _kind(function)
            self._refuse(f"its pickle calls {shown(called)}, which was not run")
        try:
            return builder(arguments)
        except _WrongArguments as e:
            self._refuse(f"its pickle calls {function.name} with {e}")


class _WrongArguments(Exception):
    """Says what is wrong with the arguments of a call."""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensor(arguments: tuple[Any, ...]) -> TensorRecord:
    """Build what `_rebuild_tensor`, `_v2` and `_v3` do: the fifth and sixth arguments train."""
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides), *more):
            pass
        case _:
            raise _WrongArguments("arguments that are not those of a tensor")
    dtype = storage.dtype
    for extra in more[2:]:
        if isinstance(extra, _Global) and extra.name in _DTYPE_NAMES:
            dtype = _DTYPE_NAMES[extra.name]
        elif extra:
            raise _WrongArguments("a negative or conjugate view")
    if not all(_is_count(n) for n in (offset, *shape, *strides)):
        raise _WrongArguments("a shape, strides or offset that are not")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise _WrongArguments(f"{len(shape)} dimensions and {len(strides)} strides")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    needed = (last + 1) * DTYPES[dtype].itemsize if math.prod(shape) else 0
    if needed > storage.n_bytes:
        raise _WrongArguments(
            f"shape {quoted(shape)} and strides {quoted(strides)} at {offset}, "
            f"which need {needed} bytes of a storage of {storage.n_bytes}"
        )
    return TensorRecord(storage, dtype, offset, shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> TensorRecord:
    match arguments:
        case (TensorRecord() as record, *_):
            return record
    raise _WrongArguments("something that is not a tensor")


def _subclass(arguments: tuple[Any, ...]) -> TensorRecord:
    match arguments:
        case (_Global(name=function), _Global(name=kind), tuple(inner), _) if (
            kind in _TENSOR_CLASSES and function in (_TENSOR, _TENSOR_V2, _TENSOR_V3)
        ):
            return _tensor(inner)
    raise _WrongArguments("another class than torch.Tensor")


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise _WrongArguments("arguments")
    return {}


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    match arguments:
        case (tuple(dims) | list(dims),):
            return tuple(dims)
    raise _WrongArguments("something that is not a shape")


_TENSOR = "torch._utils._rebuild_tensor"
_TENSOR_V2 = "torch._utils._rebuild_tensor_v2"
_TENSOR_V3 = "torch._utils._rebuild_tensor_v3"
_BUILDERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    _TENSOR: _tensor,
    _TENSOR_V2: _tensor,
    _TENSOR_V3: _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered_dict,
}


def _kind(value: Any) -> str:
    return "a tensor" if isinstance(value, TensorRecord) else f"a {type(value).__name__}"
