"""Statistics of alternating measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ratio", "ratio_of_rounds"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast one engine is as another.

    Parameters
    ----------
    median, low, high : float
        Of the ratios of all rounds; `low` and `high` are their extremes.
    n_rounds : int
        One has no spread.
    """

    median: float
    low: float
    high: float
    n_rounds: int

    def __str__(self) -> str:
        if self.n_rounds == 1:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio_of_rounds(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Ratio:
    """Compare medians round by round.

    Parameters
    ----------
    ours, theirs : sequence of sequence of float
        Tokens a second, a sequence a round, the rounds in the same order.

    Raises
    ------
    ValueError
        The rounds are not as many, or there are none.
    """
    ratios = [
        statistics.median(mine) / statistics.median(other)
        for mine, other in zip(ours, theirs, strict=True)
    ]
    if not ratios:
        raise ValueError("no rounds to compare")
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), len(ratios))
