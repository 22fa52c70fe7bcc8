"""What a conversion did: a record of every tensor, and the totals.

Owns no behaviour but sums; the command line decides how to show them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ConversionReport", "TensorReport"]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """How one tensor was stored.

    Parameters
    ----------
    source_type, type : str
        The checkpoint's type and qllama's.
    n_bytes : int
        In the `.qlm` file, padding to whole tiles included.
    carried : bool
        Whether its blocks were taken over unchanged rather than quantized anew.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    n_bytes: int
    carried: bool


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What `converter.pipeline.convert` made, and from what.

    Parameters
    ----------
    recipe : str
        Name of the preset.
    n_bytes : int
        Size of the `.qlm` file.
    seconds : float
        Wall time of the whole conversion.
    """

    source: Path
    out: Path
    recipe: str
    tensors: tuple[TensorReport, ...]
    n_bytes: int
    seconds: float

    @property
    def n_weights(self) -> int:
        """Values in all tensors, padding not counted."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of the tensors, padding counted, over their weights."""
        return 8 * sum(t.n_bytes for t in self.tensors) / self.n_weights

    def __str__(self) -> str:
        return (
            f"{self.out}: {self.recipe}, {self.n_weights / 1e6:.1f} M weights at "
            f"{self.bits_per_weight:.2f} bits, {self.n_bytes / 1e6:.1f} MB, "
            f"converted in {self.seconds:.1f} s"
        )
