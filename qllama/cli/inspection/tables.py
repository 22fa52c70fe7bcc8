"""Titled tables as coloured, aligned text for a terminal, or as Markdown.

Owns how tables look; knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Section", "as_markdown", "as_table", "human_count", "human_size", "pairs", "terminal"]

# Where output goes that is no terminal, nothing is wrapped.
_NO_WRAP_WIDTH = 10_000


@dataclass(frozen=True, slots=True)
class Section:
    """A titled table, whose last column alone is folded where a terminal is too narrow.

    Parameters
    ----------
    title : str
    columns : tuple of str
        Headings; none where the rows are names and values.
    rows : tuple of tuple of str
        A section without rows is not shown.
    numbers : tuple of str
        Headings of the columns that are aligned to the right.
    note : str
        What stands below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[str, ...] = ()
    note: str = ""


def pairs(title: str, data: Mapping[str, Any]) -> Section:
    """Return a section of names and values.

    Parameters
    ----------
    title : str
    data : mapping
        Plain JSON values.
    """
    return Section(title, (), tuple((key, _text(value)) for key, value in data.items()))


def human_size(n_bytes: int) -> str:
    """Return `n_bytes` in the binary unit that suits it, as `81.0 MiB`."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{n_bytes} B" if unit == "B" else f"{size:.1f} {unit}"


def human_count(n: int) -> str:
    """Return `n` with four digits, as `3.213 G` or `134.5 M`."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.4g} {unit}"
    return str(n)


def terminal() -> Console:
    """Return a console for stdout: colours and wrapping only where a terminal shows them.

    It honours NO_COLOR and its like, as rich does.
    """
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=_NO_WRAP_WIDTH)
    return console


def as_table(sections: Iterable[Section], console: Console) -> str:
    """Return sections as aligned columns.

    Parameters
    ----------
    sections : iterable of Section
    console : Console
        Whose width and colours to use; nothing is printed.
    """
    with console.capture() as captured:
        for i, section in enumerate(s for s in sections if s.rows):
            if i:
                console.print()
            console.print(section.title, style="bold")
            console.print(_grid(section))
            if section.note:
                console.print(_note(section.note))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _grid(section: Section) -> RenderableType:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(section.columns))
    columns = section.columns or ("", "")
    for i, name in enumerate(columns):
        is_last = i == len(columns) - 1
        grid.add_column(
            Text(name, style="dim"),
            justify="right" if name in section.numbers else "left",
            style="cyan" if i == 0 else "",
            no_wrap=not is_last,
            overflow="fold" if is_last else "ellipsis",
        )
    for row in section.rows:
        grid.add_row(*(Text(_printable(cell)) for cell in row))
    return Padding(grid, (0, 0, 0, 2))


def _note(text: str) -> RenderableType:
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(text, style="dim"), (0, 0, 0, 2))


def as_markdown(sections: Iterable[Section]) -> str:
    """Return sections as Markdown tables.

    Parameters
    ----------
    sections : iterable of Section
    """
    blocks = []
    for section in sections:
        if not section.rows:
            continue
        columns = section.columns or ("field", "value")
        rules = ("---:" if name in section.numbers else "---" for name in columns)
        lines = [f"## {section.title}", "", _markdown_row(columns), _markdown_row(rules)]
        lines += [_markdown_row(row) for row in section.rows]
        if section.note:
            lines += ["", section.note]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _markdown_row(cells: Iterable[str]) -> str:
    escaped = (_printable(cell).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # Values that were float32 once would show digits they never had.
        return f"{value:.7g}"
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _printable(text: str) -> str:
    """`text` without what would move a terminal's cursor or break a line: files say anything."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
