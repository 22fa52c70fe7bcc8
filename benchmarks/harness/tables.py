"""Results as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from harness.comparison import Comparison, Side
from harness.ratios import ratio_of_rounds
from qllama.bench.markdown import table

__all__ = ["comparison_table", "share"]


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Tabulate medians, what they are of the machine's limits, and ratios with their spread."""
    rivals = list(dict.fromkeys(side.engine for c in comparisons for side in c.rivals))
    header = ["model", "test", "threads", "qllama t/s", "GB/s", "of weights", "GOP/s"]
    for rival in rivals:
        header += [f"{rival} t/s", "ratio (min-max)"]
    rows = []
    for comparison in comparisons:
        ours = comparison.ours
        row = [
            comparison.model,
            comparison.test.name,
            str(comparison.n_threads),
            _speed(ours),
            share(ours.detail("gb_s"), ours.detail("read_share"), digits=1),
            _percent(ours.detail("weights_share")),
            share(ours.detail("gop_s"), ours.detail("dot4_share")),
        ]
        sides = {side.engine: side for side in comparison.rivals}
        for rival in rivals:
            side = sides.get(rival)
            row += [_rival(side), _ratio(ours, side)] if side else ["", ""]
        rows.append(row)
    return table(header, rows, header[:2])


def share(value: float | None, of_limit: float | None, digits: int = 0) -> str:
    """Write a figure and what it is of its limit; nothing where there is none."""
    if value is None or of_limit is None:
        return ""
    return f"{value:.{digits}f} ({of_limit:.0%})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _speed(side: Side) -> str:
    median = statistics.median(side.samples)
    return f"{median:.0f}" if median >= 1000 else f"{median:.1f}"


def _rival(side: Side) -> str:
    return f"{_speed(side)} `{side.arguments}`" if side.tried else _speed(side)


def _ratio(ours: Side, theirs: Side) -> str:
    return str(ratio_of_rounds(ours.rounds, theirs.rounds))
