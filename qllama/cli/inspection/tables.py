"""Model facts as aligned text for a terminal, or as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qllama.cli.inspection.facts import ModelFacts

__all__ = ["as_markdown", "as_table", "human_size"]


@dataclass(frozen=True, slots=True)
class Section:
    """A titled table; numbers are what its columns from the second on mostly hold."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def human_size(n_bytes: int) -> str:
    """Return `n_bytes` in the binary unit that suits it, as `81.0 MiB`."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{n_bytes} B" if unit == "B" else f"{size:.1f} {unit}"


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


def _pairs(title: str, data: Mapping[str, Any]) -> Section:
    return Section(title, ("field", "value"), tuple((k, _text(v)) for k, v in data.items()))


def _sections(facts: ModelFacts, with_tensors: bool) -> list[Section]:
    file = {
        "path": facts.path,
        "size": f"{human_size(facts.file_n_bytes)} ({facts.file_n_bytes:,} bytes)",
        "KV cache per token": f"{facts.kv_n_bytes_per_token:,} bytes",
    }
    parts = tuple(
        (
            part.name,
            f"{part.parameters:,}",
            human_size(part.n_bytes),
            f"{part.bits_per_weight:.2f}",
            " ".join(part.types),
        )
        for part in facts.parts
    )
    sections = [
        _pairs("File", file),
        _pairs("Model", facts.config),
        Section("Weights", ("part", "parameters", "size", "bits/weight", "types"), parts),
        _pairs("Tokenizer", facts.tokenizer),
        _pairs("Recipe", facts.recipe),
        _pairs("Provenance", facts.provenance),
    ]
    if with_tensors:
        rows = tuple(
            (t.name, t.type, " x ".join(map(str, t.shape)), t.layout, f"{t.n_bytes:,}")
            for t in facts.tensors
        )
        sections.append(Section("Tensors", ("name", "type", "shape", "layout", "bytes"), rows))
    return [section for section in sections if section.rows]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def as_table(facts: ModelFacts, *, with_tensors: bool) -> str:
    """Return `facts` as aligned columns, with the tensor table where `with_tensors`."""
    blocks = []
    for section in _sections(facts, with_tensors):
        pairs = section.columns == ("field", "value")
        rows = section.rows if pairs else (section.columns, *section.rows)
        blocks.append("\n".join([section.title, *_aligned(rows)]))
    return "\n\n".join(blocks)


def as_markdown(facts: ModelFacts, *, with_tensors: bool) -> str:
    """Return `facts` as Markdown tables, with the tensor table where `with_tensors`."""
    blocks = []
    for section in _sections(facts, with_tensors):
        lines = [f"## {section.title}", ""]
        lines += [_markdown_row(section.columns), _markdown_row(("---",) * len(section.columns))]
        lines += [_markdown_row(row) for row in section.rows]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"
