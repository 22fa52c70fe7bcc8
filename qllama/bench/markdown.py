"""Tables as Markdown, laid out to be read as they are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["table"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str]) -> str:
    """Lay out a table.

    Parameters
    ----------
    header : sequence of str
    rows : sequence of sequence of str
        As long as the header, each.
    words : collection of str
        Which columns of the header are words, and go to the left; numbers go to the right.
    """
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    rule = [
        "-" * width if name in words else "-" * (width - 1) + ":"
        for name, width in zip(header, widths, strict=True)
    ]
    lines = []
    for line in (header, rule, *rows):
        aligned = [
            cell.ljust(width) if name in words else cell.rjust(width)
            for name, cell, width in zip(header, line, widths, strict=True)
        ]
        lines.append(f"| {' | '.join(aligned)} |\n")
    return "".join(lines)
