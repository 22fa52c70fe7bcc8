"""What quantizing cost, as tables: kinds of matrices, and the worst matrices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qllama.cli.inspection.subject import TensorFacts
from qllama.cli.inspection.tables import Section

__all__ = ["quality_sections"]

_N_WORST = 10
_FIGURES = ("relative_rmse", "rmse", "cosine", "max_error")
_HEADINGS = ("relative error", "rmse", "cosine", "largest error")
_LAYER = re.compile(r"\.layers\.\d+\.")


def quality_sections(tensors: Sequence[TensorFacts]) -> list[Section]:
    """Return the tables of what the converter measured.

    Parameters
    ----------
    tensors : sequence of TensorFacts
        Of a `.qlm` file. Free-form figures that are not the converter's are left out.
    """
    measured = [(t, t.quality) for t in tensors if t.quality is not None and _is_known(t.quality)]
    if not measured:
        why = "none: this is no .qlm file, or one that was made without them; convert it again"
        return [Section("Quality", (), (("figures", why),))]
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for tensor, quality in measured:
        kind = (_LAYER.sub(".layers.*.", tensor.name), tensor.type)
        kinds.setdefault(kind, []).append(quality)
    by_kind = tuple(
        (f"{len(found)}", type_name, *_figures(_worst(found)), name)
        for (name, type_name), found in kinds.items()
    )
    worst = sorted(measured, key=lambda pair: -pair[1]["relative_rmse"])[:_N_WORST]
    by_tensor = tuple((t.type, *_figures(quality), t.name) for t, quality in worst)
    return [
        Section(
            "Quality: the worst of each kind",
            ("matrices", "type", *_HEADINGS, "name"),
            by_kind,
            numbers=("matrices", *_HEADINGS),
            note="Against the checkpoint's values. Relative: rmse over the weights' own "
            "root mean square.",
        ),
        Section(
            "Quality: the worst matrices",
            ("type", *_HEADINGS, "name"),
            by_tensor,
            numbers=_HEADINGS,
        ),
    ]


def _is_known(quality: dict[str, Any]) -> bool:
    return all(isinstance(quality.get(name), (int, float)) for name in _FIGURES)


def _worst(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return each figure's worst value, not necessarily of one matrix."""
    worst = {name: max(f[name] for f in figures) for name in _FIGURES}
    return worst | {"cosine": min(f["cosine"] for f in figures)}


def _figures(quality: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{quality['relative_rmse']:.2%}",
        f"{quality['rmse']:.2e}",
        f"{quality['cosine']:.6f}",
        f"{quality['max_error']:.2e}",
    )
