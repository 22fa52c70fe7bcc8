"""Which activations are kept, and which functions may change them.

Owns patterns of names, and what a hook may return. Where activations come in a forward
pass is `model.activations`' business.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qllama.model.activations import Activation, Observer

__all__ = ["Hook", "Hooks", "Watch", "matching"]

_F32: TypeAlias = npt.NDArray[np.float32]

#: Given an activation's values, an array of its own, and which one it is. What it returns
#: takes their place; it may change them where they are and return None.
Hook: TypeAlias = Callable[[_F32, Activation], "npt.ArrayLike | None"]
#: By names, or patterns of names as `matching` takes them.
Hooks: TypeAlias = Mapping[str, Hook]


def matching(patterns: str | Iterable[str], names: Collection[str]) -> list[str]:
    """Return the names that patterns match.

    Parameters
    ----------
    patterns : str or iterable of str
        As shells have them of paths, with dots for slashes: `?` and `*` are one and any
        characters but dots, `**` is anything, `[0-4]` one of some characters.
    names : collection of str

    Returns
    -------
    list of str
        In the order of `names`.

    Raises
    ------
    ValueError
        When a pattern matches nothing; names the nearest.
    """
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = set(filter(_expression(pattern).fullmatch, names))
        if not matched:
            raise ValueError(f"{pattern!r} matches no activation {nearest(pattern, names)}")
        found |= matched
    return [name for name in names if name in found]


def _expression(pattern: str) -> re.Pattern[str]:
    """Compile a pattern."""
    parts = re.split(r"(\*\*|\*|\?|\[[^]]*\])", pattern)
    wild = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    literals = (part if part.startswith("[") else re.escape(part) for part in parts)
    try:
        return re.compile(
            "".join(wild.get(part, other) for part, other in zip(parts, literals, strict=True))
        )
    except re.error as error:
        raise ValueError(f"{pattern!r} is no pattern: {error}") from None


def nearest(name: str, names: Collection[str]) -> str:
    """Say what a mistaken name may have meant."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if not near:
        return "of this model; llm.activations() lists them"
    return f"of this model; nearest are {', '.join(near)}"


class Watch:
    """Hooks, and what is kept of one evaluation.

    Parameters
    ----------
    names : collection of str
        The model's activations.
    hooks : sequence of Hooks
        Called in this order, where several are of one activation.
    keep : iterable of str
        Names of what is kept, as the hooks leave it.

    Raises
    ------
    ValueError
        When a hook's pattern matches nothing.
    """

    def __init__(
        self, names: Collection[str], hooks: Sequence[Hooks], keep: Iterable[str] = ()
    ) -> None:
        self._hooks: dict[str, list[Hook]] = {}
        for by_pattern in hooks:
            for pattern, hook in by_pattern.items():
                for name in matching(pattern, names):
                    self._hooks.setdefault(name, []).append(hook)
        self._keep = frozenset(keep)
        self.kept: dict[str, _F32] = {}
        self.observer = Observer(self._keep.union(self._hooks), self._visit)

    def _visit(self, at: Activation, values: _F32) -> _F32 | None:
        hooks = self._hooks.get(at.name, ())
        for hook in hooks:
            result = hook(values, at)
            if result is not None:
                values = _checked(result, at.name, values.shape)
        if at.name in self._keep:
            self.kept[at.name] = values
        return values if hooks else None


def _checked(result: npt.ArrayLike, name: str, shape: tuple[int, ...]) -> _F32:
    """Return a copy of what a hook returned."""
    values = np.array(result, np.float32)
    if values.shape != shape:
        raise ValueError(
            f"hook of {name}: expected None or an array of shape {shape}, found {values.shape}"
        )
    return values
