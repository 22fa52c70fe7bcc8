"""What kernels.py measures, and its table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from qllama.bench.markdown import table

__all__ = ["Row", "kernel_table"]


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of matrices with so many tokens: samples, each with the limit beside it.

    Parameters
    ----------
    model, type, work : str
        File, weight type, and matrix with its shape.
    n_tokens : int
    unit : str
        `GB/s` for one token, else `GOP/s`.
    values, limits : list of float
        In that unit.
    """

    model: str
    type: str
    work: str
    n_tokens: int
    unit: str
    values: list[float]
    limits: list[float]

    @property
    def shares(self) -> list[float]:
        """What the values are of the limits measured just before each."""
        return [value / limit for value, limit in zip(self.values, self.limits, strict=True)]


def kernel_table(rows: Sequence[Row]) -> str:
    """Tabulate medians."""
    return table(
        ["model", "matrix", "type", "tokens", "speed", "limit", "share (min-max)"],
        [
            [
                row.model,
                row.work,
                row.type,
                str(row.n_tokens),
                f"{statistics.median(row.values):.4g} {row.unit}",
                f"{statistics.median(row.limits):.4g} {row.unit}",
                f"{statistics.median(row.shares):.0%} ({_spread(row.shares)})",
            ]
            for row in rows
        ],
        words={"model", "matrix", "type"},
    )


def _spread(shares: Sequence[float]) -> str:
    return f"{min(shares):.0%}-{max(shares):.0%}"
