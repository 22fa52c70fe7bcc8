"""The tree of a model's modules, with layers that are alike folded into one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from qllama.cli.inspection.subject import TensorFacts

__all__ = ["ModuleFacts", "module_tree"]

_LAYER = re.compile(r"layers\.([0-9]+)\.(.+)")


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """A module, or several that are alike.

    Parameters
    ----------
    name : str
        As Hugging Face's modules are called; `layers.0-27` is 28 of them.
    count : int
        How often it is there.
    shape : tuple of int or None
        Of its weight, if it has one itself.
    has_bias : bool
    parameters : int
        Of one of them, with all that is in it.
    n_bytes : int
        Of all of them.
    types : tuple of str
        Of the tensors in all of them.
    children : tuple of ModuleFacts
    """

    name: str
    count: int
    shape: tuple[int, ...] | None
    has_bias: bool
    parameters: int
    n_bytes: int
    types: tuple[str, ...]
    children: tuple[ModuleFacts, ...]


@dataclass
class _Builder:
    """A module whose tensors are still coming in; those of its copies count as its own."""

    name: str
    count: int
    tensors: list[TensorFacts] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    has_bias: bool = False
    children: dict[str, _Builder] = field(default_factory=dict)

    def add(self, path: Sequence[str], tensor: TensorFacts, count: int) -> None:
        """Take a tensor in at `path` below this; what is on the way is there `count` times."""
        self.tensors.append(tensor)
        if not path or path == ["weight"]:
            self.shape = tensor.shape
        elif path == ["bias"]:
            self.has_bias = True
        else:
            child = self.children.setdefault(path[0], _Builder(path[0], count))
            child.add(path[1:], tensor, count)

    def build(self) -> ModuleFacts:
        return ModuleFacts(
            name=self.name,
            count=self.count,
            shape=self.shape,
            has_bias=self.has_bias,
            parameters=sum(t.parameters for t in self.tensors) // self.count,
            n_bytes=sum(t.n_bytes for t in self.tensors),
            types=tuple(sorted({t.type for t in self.tensors})),
            children=tuple(child.build() for child in self.children.values()),
        )


def module_tree(name: str, tensors: Iterable[TensorFacts], *, expand: bool) -> ModuleFacts:
    """Arrange tensors by the modules that own them.

    Parameters
    ----------
    name : str
        Of the root.
    tensors : iterable of TensorFacts
    expand : bool
        Leave layers that are alike, which stand one after the other, unfolded.
    """
    tensors = list(tensors)
    layers: dict[int, list[tuple[str, TensorFacts]]] = {}
    for tensor in tensors:
        match = _LAYER.fullmatch(_short(tensor.name))
        if match is not None:
            layers.setdefault(int(match[1]), []).append((match[2], tensor))
    groups = {index: (f"layers.{index}", 1) for index in layers}
    if not expand:
        for _, indices in groupby(layers, key=lambda i: [(n, t.shape) for n, t in layers[i]]):
            alike = list(indices)
            if len(alike) > 1:
                groups |= {i: (f"layers.{alike[0]}-{alike[-1]}", len(alike)) for i in alike}
    root = _Builder(name, 1)
    for tensor in tensors:
        match = _LAYER.fullmatch(_short(tensor.name))
        if match is None:
            root.add(_short(tensor.name).split("."), tensor, 1)
        else:
            group, count = groups[int(match[1])]
            root.add([group, *match[2].split(".")], tensor, count)
    return root.build()


def _short(name: str) -> str:
    return name.removeprefix("model.")
