"""The pickles in PyTorch's files, read without running anything.

Owns a small pickle machine: it knows the opcodes that a state dict is made of, builds
plain containers and the records of `torch_records` with them, and refuses everything else
by name. Nothing is imported and nothing is called that a file names. Knows no container
format and reads no weights.

Reference: Python's `pickletools` describes every opcode.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from typing import Any, BinaryIO, NoReturn

from converter.sources.torch_records import (
    BUILDERS,
    NAMES,
    Global,
    TensorRecord,
    WrongArguments,
    storage_of,
)
from converter.wording import quoted, shown
from qllama.errors import ConversionError

__all__ = ["unpickle"]


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
                try:
                    stack.append(storage_of(stack.pop()))
                except WrongArguments as e:
                    self._refuse(f"its pickle refers to {e}")
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

    def _known(self, name: str) -> Global:
        if name not in NAMES:
            self._refuse(f"its pickle asks for {shown(name)}, which is refused and was not run")
        return Global(name)

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

    def _call(self, function: Any, arguments: Any) -> Any:
        builder = BUILDERS.get(function.name) if isinstance(function, Global) else None
        if builder is None or not isinstance(arguments, tuple):
            called = function.name if isinstance(function, Global) else _kind(function)
            self._refuse(f"its pickle calls {shown(called)}, which was not run")
        try:
            return builder(arguments)
        except WrongArguments as e:
            self._refuse(f"its pickle calls {function.name} with {e}")


def _kind(value: Any) -> str:
    return "a tensor" if isinstance(value, TensorRecord) else f"a {type(value).__name__}"
