"""Rows of text as aligned columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["aligned"]


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return `rows` as lines whose columns are as wide as their widest cell.

    Parameters
    ----------
    rows : sequence of sequence of str
        As many cells in each.
    right : collection of int
        Columns, from 0, whose cells stand at their right edge: numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
