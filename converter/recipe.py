"""Which weight type each tensor of a model gets.

Owns the presets, as data. Knows names and shapes, never values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from qllama.errors import ConversionError
from qllama.tensors import EMBEDDING, HEAD

__all__ = ["PRESETS", "Recipe", "preset"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Weight types by the part a tensor plays; vectors are always `f32`.

    Parameters
    ----------
    name : str
        The preset's name, part of the default file name.
    matrices : str
        Of the projections in the layers.
    embedding, head : str
        Of the token embedding and of the output head. A tied model has only the
        embedding, which serves as both.
    """

    name: str
    matrices: str
    embedding: str
    head: str

    def type_of(self, name: str, shape: tuple[int, ...]) -> str:
        """Weight type of the tensor `name` of shape `shape`."""
        if len(shape) == 1:
            return "f32"
        return {EMBEDDING: self.embedding, HEAD: self.head}.get(name, self.matrices)

    def to_dict(self) -> dict[str, str]:
        """Plain JSON values, as a `.qlm` keeps them."""
        return asdict(self)


# `q4` leaves the embedding and the head at 8 bits: an error there lands on every token's input
# and on the logits themselves, with no later layer to average it out.
PRESETS: dict[str, Recipe] = {
    "q4": Recipe("q4", matrices="q4", embedding="q8_0", head="q8_0"),
    "q8": Recipe("q8", matrices="q8_0", embedding="q8_0", head="q8_0"),
    **{t: Recipe(t, t, t, t) for t in ("q6", "q4_0", "q8_0", "f16", "bf16", "f32")},
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
