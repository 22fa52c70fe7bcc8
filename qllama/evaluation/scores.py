"""What logits say of the tokens that really came: the arithmetic of one token.

All in float64, and row by row: beside the logits it takes a few rows of memory, whatever
the vocabulary. Knows no model and no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["Comparison", "compare", "negative_log_likelihoods"]

Array = npt.NDArray[np.float64]


@dataclass(slots=True)
class Comparison:
    """What two models say of the same tokens, one value a token.

    Parameters
    ----------
    nll, base_nll : float64, (n_tokens,)
        Negative log-likelihoods of the tokens that came, in nats: of the model, and of
        the base that it is compared with.
    kld : float64, (n_tokens,)
        Kullback-Leibler divergence of the model from the base, over the vocabulary.
    delta_p : float64, (n_tokens,)
        The token's probability by the model, less that by the base.
    same_top : bool, (n_tokens,)
        Whether both hold the same token for the likeliest.
    """

    nll: Array
    base_nll: Array
    kld: Array
    delta_p: Array = field(init=False)
    same_top: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        self.delta_p = np.exp(-self.nll) - np.exp(-self.base_nll)

    @classmethod
    def joined(cls, parts: Sequence[Comparison]) -> Comparison:
        """Return the tokens of all `parts`, at least one, as one comparison."""
        names = ("nll", "base_nll", "kld", "same_top")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def negative_log_likelihoods(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int32]
) -> Array:
    """Return -log of the probability that each row of logits gives its token.

    Parameters
    ----------
    logits : float32, (n_tokens, vocab_size)
    targets : int32, (n_tokens,)

    Returns
    -------
    float64, (n_tokens,)
    """
    nll = np.empty(len(targets))
    for i, target in enumerate(targets):
        row = _shifted(logits[i])
        nll[i] = np.log(np.exp(row).sum()) - row[target]
    return nll


def compare(
    logits: npt.NDArray[np.float32],
    base_logits: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int32],
) -> Comparison:
    """Return how the model's logits differ from the base's.

    Parameters
    ----------
    logits, base_logits : float32, (n_tokens, vocab_size)
    targets : int32, (n_tokens,)
        The tokens that came.
    """
    nll, base_nll, kld = np.empty((3, len(targets)))
    for i, target in enumerate(targets):
        row, base_row = _shifted(logits[i]), _shifted(base_logits[i])
        p = np.exp(base_row)
        total, log_sum = p.sum(), np.log(np.exp(row).sum())
        base_log_sum = np.log(total)
        nll[i] = log_sum - row[target]
        base_nll[i] = base_log_sum - base_row[target]
        # sum of p (log p - log q); never negative but by rounding.
        kld[i] = p @ (base_row - row) / total - base_log_sum + log_sum
    same_top = logits.argmax(-1) == base_logits.argmax(-1)
    return Comparison(nll, base_nll, np.maximum(kld, 0), same_top)


def _shifted(logits: npt.NDArray[np.float32]) -> Array:
    """The row less its largest: its exponentials cannot overflow."""
    row = logits.astype(np.float64)
    row -= row.max()
    return row
