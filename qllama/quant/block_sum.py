"""Sums over the elements of blocks, in the order that compiled code adds them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["sum_block"]


def sum_block(terms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Add up over a block, element 0 first; numpy's own sum may pair terms.

    Parameters
    ----------
    terms : float32, (32, n)

    Returns
    -------
    float32, (n,)
    """
    total = np.zeros(terms.shape[1], np.float32)
    for term in terms:
        total += term
    return total
