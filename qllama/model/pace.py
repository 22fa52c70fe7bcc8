"""How much work to give the threads at once, so that an interruption never waits long.

Owns the estimate only. A call of the team goes to its end without Python, and Ctrl-C is
heard between two calls: what is given must not take long, and not so little that a
prompt is read slowly. Results do not depend on it.
"""

from __future__ import annotations

import math

from qllama.config import ModelConfig
from qllama.tensors import expected_shapes

__all__ = ["Pace"]

# Of one call. With what Python and the terminal take, an answer ends well within 0.2 s.
_SECONDS = 0.125
# Before anything is measured: what a core without matrix instructions reaches, and slow
# memory.
_FLOPS = 50e9
_WEIGHTS_PER_SECOND = 5e9
# Tokens of a chunk are a multiple of it, and never fewer: the kernels' widest group.
_GRAIN = 32


class Pace:
    """What one layer takes, of one token and of many.

    Parameters
    ----------
    config : ModelConfig
    n_threads : int
    """

    def __init__(self, config: ModelConfig, n_threads: int) -> None:
        n_weights = sum(
            math.prod(shape)
            for name, shape in expected_shapes(config).items()
            if name.startswith("model.layers.0.")
        )
        self._token_seconds = 2 * n_weights / (_FLOPS * n_threads)
        self._layer_seconds = n_weights / _WEIGHTS_PER_SECOND

    def n_tokens(self, most: int) -> int:
        """Return how many tokens of a prompt to evaluate together, at most `most`."""
        n = int(_SECONDS / self._token_seconds) // _GRAIN * _GRAIN
        return min(most, max(n, _GRAIN))

    def n_layers(self, n_tokens: int) -> int:
        """Return how many layers of `n_tokens` tokens to evaluate in one call."""
        seconds = max(self._layer_seconds, n_tokens * self._token_seconds)
        return max(1, int(_SECONDS / seconds))

    def measured(self, n_tokens: int, n_layers: int, seconds: float) -> None:
        """Hear what a step took.

        Parameters
        ----------
        n_tokens, n_layers : int
            Of the step.
        seconds : float
        """
        if n_tokens >= _GRAIN:
            self._token_seconds = seconds / n_layers / n_tokens
        elif n_tokens == 1:
            self._layer_seconds = seconds / n_layers
