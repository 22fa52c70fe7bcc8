"""What layer_errors.py measures, and its table."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from qllama.bench.markdown import table

__all__ = ["LayerRow", "layer_table"]


@dataclass(slots=True)
class LayerRow:
    """One weight type on the matrices of a model.

    Parameters
    ----------
    engine, type : str
    told : str
        What the quantizer knew of the inputs, "" if nothing.
    bits_per_weight : float
        Scales and row factors counted, mean of the matrices.
    errors : dict of str to float
        Relative error of the outputs, by matrix.
    """

    engine: str
    type: str
    told: str
    bits_per_weight: float
    errors: dict[str, float]

    def mean(self, kind: str = "") -> float:
        """Geometric mean of the errors of the matrices whose name ends with `kind`."""
        return statistics.geometric_mean(
            error for name, error in self.errors.items() if name.endswith(kind)
        )


def layer_table(rows: Sequence[LayerRow]) -> str:
    """Tabulate geometric means over layers in %, a column a kind of matrix."""
    kinds = list(dict.fromkeys(re.sub(r"^layer\.\d+\.", "", n) for row in rows for n in row.errors))
    lines = []
    for row in rows:
        name = row.type if row.engine == "qllama" else f"{row.engine} {row.type}"
        errors = [f"{100 * row.mean(kind):.2f}" for kind in [*kinds, ""]]
        lines.append([name, row.told, f"{row.bits_per_weight:.2f}", *errors])
    return table(["type", "told", "bits", *kinds, "all"], lines, words={"type", "told"})
