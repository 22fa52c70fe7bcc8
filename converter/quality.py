"""What quantizing a tensor cost: four figures, drawn from sums over its tiles.

Owns the figures and their names in a `.qlm` file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Quality"]


@dataclass(frozen=True, slots=True)
class Quality:
    """How far the stored values of a matrix are from the checkpoint's.

    Parameters
    ----------
    rmse : float
        Root of the mean squared difference.
    relative_rmse : float
        The same over the root of the weights' mean square; 0 where all weights are.
    cosine : float
        Of the angle between the two as vectors; 1 where nothing is lost.
    max_error : float
        The largest difference.
    """

    rmse: float
    relative_rmse: float
    cosine: float
    max_error: float

    @classmethod
    def of(cls, sums: Sequence[npt.NDArray[np.float64]], n_weights: int) -> Quality:
        """Draw the figures from `quantization_error`'s sums.

        Parameters
        ----------
        sums : sequence of float64, (tiles, 5)
            Of a matrix's slabs. All tiles are added up at once, so that the figures do not
            depend on how the matrix was cut.
        n_weights : int
            Weights in the matrix.
        """
        tiles = np.concatenate(sums)
        ww, vv, wv, squares = tiles[:, :4].sum(axis=0).tolist()
        return cls(
            rmse=_rounded(math.sqrt(squares / n_weights)),
            relative_rmse=_rounded(math.sqrt(squares / ww)) if ww else 0.0,
            cosine=_rounded(wv / math.sqrt(ww * vv)) if ww and vv else float(ww == vv),
            max_error=_rounded(float(tiles[:, 4].max())),
        )

    @classmethod
    def lossless(cls) -> Quality:
        """Figures of blocks that were taken over as they are."""
        return cls(rmse=0.0, relative_rmse=0.0, cosine=1.0, max_error=0.0)

    def to_dict(self) -> dict[str, float]:
        """Plain JSON values, as a `.qlm` keeps them."""
        return asdict(self)


def _rounded(value: float) -> float:
    """Six digits: what follows depends on the order of summation."""
    return float(f"{value:.6g}")
