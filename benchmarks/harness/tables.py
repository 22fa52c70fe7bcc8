"""Results as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from harness.comparison import Comparison, Side
from harness.ratios import ratio_of_rounds

__all__ = ["comparison_table", "markdown", "share"]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], n_text: int = 1) -> str:
    """Lay out a table.

    Parameters
    ----------
    header : sequence of str
    rows : sequence of sequence of str
        As long as the header, each.
    n_text : int
        Columns of words, on the left; the rest are numbers.
    """
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    rule = [
        "-" * width if column < n_text else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    lines = []
    for line in [cells[0], rule, *cells[1:]]:
        aligned = [
            cell.ljust(width) if column < n_text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(aligned)} |")
    return "\n".join(lines) + "\n"


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Tabulate medians, what they are of the machine's limits, and ratios with their spread."""
    rivals = list(dict.fromkeys(side.engine for c in comparisons for side in c.rivals))
    header = ["model", "test", "threads", "qllama t/s", "GB/s", "GOP/s"]
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
            share(ours.details.get("gb_s"), ours.details.get("read_share"), digits=1),
            share(ours.details.get("gop_s"), ours.details.get("dot4_share")),
        ]
        sides = {side.engine: side for side in comparison.rivals}
        for rival in rivals:
            side = sides.get(rival)
            row += [_rival(side), _ratio(ours, side)] if side else ["", ""]
        rows.append(row)
    return markdown(header, rows, n_text=2)


def share(value: float | None, of_limit: float | None, digits: int = 0) -> str:
    """Write a figure and what it is of its limit; nothing where there is none."""
    if value is None or of_limit is None:
        return ""
    return f"{value:.{digits}f} ({of_limit:.0%})"


def _speed(side: Side) -> str:
    median = statistics.median(side.samples)
    return f"{median:.0f}" if median >= 1000 else f"{median:.1f}"


def _rival(side: Side) -> str:
    return f"{_speed(side)} `{side.arguments}`" if side.tried else _speed(side)


def _ratio(ours: Side, theirs: Side) -> str:
    return str(ratio_of_rounds(ours.rounds, theirs.rounds))
