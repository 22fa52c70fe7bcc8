"""Has a model read windows of tokens while somebody watches what its matrices are given.

Owns the watching, and how many tokens are read together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from converter.check.forward import ForwardPass, Reading, Text
from converter.check.weights import Weights
from qllama.errors import ContextLengthError

__all__ = ["Watched", "passes"]

F32 = npt.NDArray[np.float32]
# States and the wide activations of an 8B take 0.5 GB; weights are decoded once for these.
_TOKENS_TOGETHER = 2048


class Watched(Weights):
    """Weights that tell what they are multiplied with.

    Parameters
    ----------
    weights : Weights
        What they are.
    on_product : callable
        Called with the name of a matrix and its inputs, float32 (n, k); matrices with the
        same inputs, one after another, get the same array.
    """

    def __init__(self, weights: Weights, on_product: Callable[[str, F32], None]) -> None:
        super().__init__(weights.config, weights.shapes)
        self._weights = weights
        self._on_product = on_product

    def read(self, name: str, start: int, stop: int) -> F32:
        """Decode rows; see `Weights.read`."""
        return self._weights.read(name, start, stop)

    def vector(self, name: str) -> F32:
        """Decode a vector; see `Weights.vector`."""
        return self._weights.vector(name)

    def linear(self, x: F32, name: str) -> F32:
        """Tell, and multiply; see `Weights.linear`."""
        self._on_product(name + ".weight", x)
        return self._weights.linear(x, name)


def passes(weights: Weights, windows: npt.NDArray[np.int32]) -> list[ForwardPass]:
    """Prepare forward passes through windows, several in each.

    Parameters
    ----------
    weights : Weights
    windows : int32, (n_windows, n_ctx)
        Tokens, each window read by itself.

    Raises
    ------
    ContextLengthError
        When a window is longer than the model's context.
    """
    n_ctx, limit = windows.shape[1], weights.config.max_position_embeddings
    if n_ctx > limit:
        raise ContextLengthError(
            f"windows: expected at most {limit} tokens, the model's context, found {n_ctx}; "
            "give a smaller -c"
        )
    reading, step = Reading(weights.config.rope_theta), max(1, _TOKENS_TOGETHER // n_ctx)
    return [
        ForwardPass(
            weights,
            [Text(w, range(n_ctx), reading) for w in windows[first : first + step].tolist()],
        )
        for first in range(0, len(windows), step)
    ]
