"""Activations as a tree, for terminals and notebooks: layers that are alike stand together."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TypeAlias

__all__ = ["Activations", "as_html", "as_text"]

_Shape: TypeAlias = tuple[int | str, ...]
_Shapes: TypeAlias = Mapping[str, _Shape]


class Activations(Mapping[str, _Shape]):
    """Names and shapes of a model's activations, in the order of its forward pass.

    Parameters
    ----------
    shapes : mapping of str to tuple
        Sizes are numbers, or names of what depends on the text.
    """

    def __init__(self, shapes: _Shapes) -> None:
        self._shapes = dict(shapes)

    def __getitem__(self, name: str) -> _Shape:
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __repr__(self) -> str:
        return f"<{len(self)} activations>\n{as_text(self)}"

    def _repr_html_(self) -> str:
        return as_html(f"{len(self)} activations", self)


def as_text(shapes: _Shapes) -> str:
    """Return a line for every module and activation, indented.

    Parameters
    ----------
    shapes : mapping of str to tuple
    """
    lines = [("  " * depth + label, shape) for depth, label, shape in _rows(shapes)]
    width = max((len(label) for label, shape in lines if shape), default=0) + 2
    return "\n".join(f"{label:{width}}{shape}".rstrip() for label, shape in lines)


def as_html(title: str, shapes: _Shapes) -> str:
    """Return a table of the same lines.

    Parameters
    ----------
    title : str
    shapes : mapping of str to tuple
    """
    cells = (
        f'<tr><td style="text-align:left;padding-left:{depth + 0.5}em">{html.escape(label)}</td>'
        f'<td style="text-align:left">{html.escape(shape)}</td></tr>'
        for depth, label, shape in _rows(shapes)
    )
    return f"<table><caption>{html.escape(title)}</caption>{''.join(cells)}</table>"


def _rows(shapes: _Shapes) -> Iterator[tuple[int, str, str]]:
    """Yield (depth, label, shape or nothing)."""
    parts: list[tuple[list[str], list[tuple[str, str]]]] = []
    for layer, names in groupby(shapes, key=_layer):
        inner = [
            (name.removeprefix(f"{layer}."), " x ".join(map(str, shapes[name]))) for name in names
        ]
        if layer and parts and parts[-1][1] == inner:
            parts[-1][0].append(layer)
        else:
            parts.append(([layer] if layer else [], inner))
    for layers, inner in parts:
        if layers:
            yield 0, " to ".join(dict.fromkeys([layers[0], layers[-1]])), ""
        for name, shape in inner:
            yield len(layers[:1]), name, shape


def _layer(name: str) -> str:
    """`layers.N` of a name, or nothing."""
    return ".".join(name.split(".")[:2]) if name.startswith("layers.") else ""
