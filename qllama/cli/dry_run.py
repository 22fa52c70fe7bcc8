"""What `qllama convert --dry-run` prints: a conversion's plan as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qllama.cli.columns import aligned

if TYPE_CHECKING:
    from converter.report import ConversionPlan, TensorReport

__all__ = ["as_text"]

_COLUMNS = ("tensor", "shape", "from", "bytes", "to", "bytes", "read from")
# Columns of numbers stand at their right edge.
_RIGHT = (3, 5)


def as_text(plan: ConversionPlan) -> str:
    """Return `plan` as aligned lines: every tensor, then the totals."""
    lines = aligned([_COLUMNS, *(_row(tensor) for tensor in plan.tensors)], _RIGHT)
    source_n_bytes = sum(tensor.source_n_bytes for tensor in plan.tensors)
    carried = sum(tensor.carried for tensor in plan.tensors)
    lines += ["", f"{plan.source}: {len(plan.tensors)} tensors, {source_n_bytes / 1e6:.1f} MB"]
    if carried:
        lines.append(f"{carried} tensors keep their blocks as they are (=)")
    return "\n".join([*lines, f"would write {plan}"])


def _row(tensor: TensorReport) -> tuple[str, ...]:
    return (
        tensor.name,
        " x ".join(map(str, tensor.shape)),
        tensor.source_type,
        f"{tensor.source_n_bytes:,}",
        f"{tensor.type} =" if tensor.carried else tensor.type,
        f"{tensor.n_bytes:,}",
        tensor.source,
    )
