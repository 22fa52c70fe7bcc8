"""Which weight type each tensor of a model gets.

Owns the presets, as data, and how they are read. Knows names and shapes, never values: a
model of given shapes always gets the same types.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from converter.wording import quoted
from qllama.errors import ConversionError
from qllama.format.spec import TensorSpec, tensor_n_bytes
from qllama.quant import QUANT_TYPES
from qllama.tensors import EMBEDDING, HEAD

__all__ = ["PRESETS", "Recipe", "Rule", "preset", "tensor_type_argument"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Rule:
    """Matrices by name, and their weight type.

    Parameters
    ----------
    pattern : str
        A regular expression that is searched in the canonical name. In a tied model the
        embedding, which is the head too, also has the head's name.
    type : str
    """

    pattern: str
    type: str

    def matches(self, names: Sequence[str]) -> bool:
        """Whether the pattern is in one of the `names` of a matrix."""
        return any(re.search(self.pattern, name) for name in names)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the matrices of a model get their types; vectors are always `f32`.

    Parameters
    ----------
    name : str
        The preset's name, part of the default file name.
    rules : tuple of Rule
        A matrix gets the type of the first rule that matches it; the last matches all.
    upgrades : tuple of Rule
        What to do better while the model stays within `budget`: rule after rule, in each
        matrix after matrix in their order. A later rule may raise a matrix again.
    budget : float or None
        Stored bits a weight of the whole model, padding, vectors and row factors counted.
    overrides : tuple of Rule
        Come before all rules, and are kept whatever the budget.
    """

    name: str
    rules: tuple[Rule, ...]
    upgrades: tuple[Rule, ...] = ()
    budget: float | None = None
    overrides: tuple[Rule, ...] = ()

    def with_overrides(self, overrides: Sequence[Rule]) -> Recipe:
        """Return this recipe with `overrides` that come first."""
        return replace(self, overrides=(*self.overrides, *overrides))

    def types(self, shapes: Shapes) -> dict[str, str]:
        """Choose the weight type of every tensor of a model.

        Parameters
        ----------
        shapes : mapping
            Canonical name to shape, (n,) or (rows, k), in the order of a tensor table.

        Raises
        ------
        ConversionError
            When an override matches no matrix.
        """
        matrices = dict(_matrices(shapes))
        for rule in self.overrides:
            if not any(map(rule.matches, matrices.values())):
                raise ConversionError(
                    f"--tensor-type {rule.pattern}={rule.type}: expected a pattern that is in the "
                    f"name of a matrix, as {next(iter(matrices))}; no name has it, see --dry-run"
                )
        types = dict.fromkeys(shapes, "f32")
        for name, names in matrices.items():
            types[name] = next(r.type for r in (*self.overrides, *self.rules) if r.matches(names))
        if self.budget is not None:
            self._upgrade(types, matrices, shapes, self.budget)
        return types

    def _upgrade(
        self,
        types: dict[str, str],
        matrices: Mapping[str, Sequence[str]],
        shapes: Shapes,
        budget: float,
    ) -> None:
        left = budget * sum(map(math.prod, shapes.values()))
        left -= sum(_n_bits(name, types[name], shapes) for name in shapes)
        free = {
            name: names
            for name, names in matrices.items()
            if not any(rule.matches(names) for rule in self.overrides)
        }
        for rule in self.upgrades:
            for name in (name for name, names in free.items() if rule.matches(names)):
                more = _n_bits(name, rule.type, shapes) - _n_bits(name, types[name], shapes)
                if 0 < more <= left:
                    types[name] = rule.type
                    left -= more

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, as a `.qlm` keeps them."""
        return asdict(self)


def _matrices(shapes: Shapes) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name of every matrix, and the names that patterns are searched in."""
    for name, shape in shapes.items():
        if len(shape) == 2:
            is_head_too = name == EMBEDDING and HEAD not in shapes
            yield name, (name, HEAD) if is_head_too else (name,)


def _n_bits(name: str, type_name: str, shapes: Shapes) -> int:
    return 8 * tensor_n_bytes(TensorSpec(name, type_name, shapes[name]))


def _pure(type_name: str) -> Recipe:
    return Recipe(type_name, (Rule("", type_name),))


PRESETS: dict[str, Recipe] = {
    # In the order of what they gain a bit: docs/quantization.md.
    "q4": Recipe(
        "q4",
        rules=(Rule("", "q4"),),
        upgrades=(
            Rule("v_proj", "q5"),
            Rule("lm_head", "q5"),
            Rule("v_proj", "q6"),
            Rule("k_proj", "q5"),
            Rule("down_proj", "q5"),
        ),
        budget=4.8,
    ),
    "q4-small": Recipe("q4-small", rules=(Rule("", "q4"),)),
    "q8": Recipe("q8", rules=(Rule("", "q8_0"),)),
    **{t: _pure(t) for t in ("q5", "q6", "q4_0", "q8_0", "f16", "bf16", "f32")},
}


def preset(name: str) -> Recipe:
    """Look a preset up; upper and lower case are the same.

    Raises
    ------
    ConversionError
        When there is none of that name; lists those there are.
    """
    found = PRESETS.get(name.lower())
    if found is None:
        raise ConversionError(f"--type: expected one of {', '.join(PRESETS)}, found {name!r}")
    return found


def tensor_type_argument(text: str) -> Rule:
    """Read the `PATTERN=TYPE` of `--tensor-type`.

    Raises
    ------
    ConversionError
        When it is something else, the type is none, or the pattern no regular expression.
    """
    pattern, _, type_name = text.rpartition("=")
    where = f"--tensor-type {text}"
    if not pattern:
        raise ConversionError(f"{where}: expected PATTERN=TYPE, as down_proj=q6")
    if type_name.lower() not in QUANT_TYPES:
        types = ", ".join(QUANT_TYPES)
        raise ConversionError(f"{where}: expected one of {types}, found {quoted(type_name)}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConversionError(
            f"{where}: expected a regular expression before '=': {error}"
        ) from error
    return Rule(pattern, type_name.lower())
