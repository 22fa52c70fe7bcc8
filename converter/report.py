"""What a conversion makes, or made: a record of every tensor, and the totals.

Owns no behaviour but sums; the command line decides how to show them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from converter.quality import Quality

__all__ = ["ConversionPlan", "ConversionReport", "TensorReport"]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """How one tensor is stored.

    Parameters
    ----------
    source : str
        Where it comes from: file and the checkpoint's own name.
    source_type, type : str
        The checkpoint's type and qllama's.
    source_n_bytes : int
        In the checkpoint.
    n_bytes : int
        In the `.qlm` file, padding to whole tiles included.
    carried : bool
        Whether its blocks are taken over unchanged rather than quantized anew.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    source_type: str
    source_n_bytes: int
    type: str
    n_bytes: int
    carried: bool


@dataclass(frozen=True)
class ConversionPlan:
    """What `converter.pipeline.convert` makes, and from what.

    Parameters
    ----------
    recipe : str
        Name of the preset.
    n_bytes : int
        Size of the `.qlm` file.
    """

    source: Path
    out: Path
    recipe: str
    tensors: tuple[TensorReport, ...]
    n_bytes: int

    @property
    def n_weights(self) -> int:
        """Values in all tensors, padding not counted."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of the tensors, padding counted, over their weights."""
        return 8 * sum(t.n_bytes for t in self.tensors) / self.n_weights

    def carried_out(
        self, quality: Mapping[str, Quality], notices: tuple[str, ...], seconds: float
    ) -> ConversionReport:
        """Return the report of a conversion that went by this plan.

        Parameters
        ----------
        quality : mapping
            Figures of each matrix, by name.
        notices : tuple of str
            What the check found odd.
        seconds : float
            What it took.
        """
        planned = {field.name: getattr(self, field.name) for field in fields(self)}
        return ConversionReport(**planned, quality=quality, notices=notices, seconds=seconds)

    def __str__(self) -> str:
        return (
            f"{self.out}: {self.recipe}, {self.n_weights / 1e6:.1f} M weights at "
            f"{self.bits_per_weight:.2f} bits, {self.n_bytes / 1e6:.1f} MB"
        )


@dataclass(frozen=True)
class ConversionReport(ConversionPlan):
    """What a conversion made.

    Parameters
    ----------
    quality : mapping
        What quantizing cost each matrix, by name.
    notices : tuple of str
        What the check found odd, though not wrong.
    seconds : float
        Wall time of the whole conversion.
    """

    quality: Mapping[str, Quality]
    notices: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        worst = max(self.quality, key=lambda name: self.quality[name].relative_rmse)
        return (
            f"{super().__str__()}, converted in {self.seconds:.1f} s; largest relative error "
            f"{self.quality[worst].relative_rmse:.2%}, of {worst}"
        )
