"""What error feedback needs to know of each matrix: the second moments of its inputs.

Owns a forward pass through the checkpoint that keeps one layer ahead of the conversion: a
layer's moments are there when its first matrix is quantized, and gone with its last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converter.check.weights import Weights
from converter.watched import Watched, passes
from qllama.errors import ConversionError
from qllama.kernels import reference as ops
from qllama.quant.feedback import feedback_factor
from qllama.tensors import FINAL_NORM, HEAD
from qllama.tokenizer import Tokenizer

__all__ = ["CalibrationText", "Columns", "Moments"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """A text for a model to read.

    Parameters
    ----------
    name : str
        As a `.qlm` remembers it.
    windows : callable
        From a tokenizer to its tokens: int32 (n_windows, n_ctx).
    """

    name: str
    windows: Callable[[Tokenizer], npt.NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Columns:
    """What is known of the columns of a matrix.

    Parameters
    ----------
    importance : float32, (k,)
        Mean squares of their inputs.
    factor : float32, (k, k), or None
        As `with_feedback` takes it.
    """

    importance: F32
    factor: F32 | None = None


class Moments:
    """Second moments of the inputs of a model's matrices, layer by layer.

    Parameters
    ----------
    weights : Weights
        Of the checkpoint.
    windows : int32, (n_windows, n_ctx)
        Tokens to read, each window by itself.
    on_layer : callable
        Told of layers read, and of how many.

    Raises
    ------
    ContextLengthError
        When a window is longer than the model's context.
    """

    def __init__(
        self,
        weights: Weights,
        windows: npt.NDArray[np.int32],
        on_layer: Callable[[int, int], None],
    ) -> None:
        self._weights, self._n_tokens = weights, windows.size
        self._passes = passes(Watched(weights, self._add), windows)
        self._states = [reading.embedded() for reading in self._passes]
        # One array for matrices of the same inputs.
        self._moments: dict[str, F32] = {}
        self._last: tuple[str, F32] | None = None
        self._next_layer = 0
        self._on_layer = on_layer
        self._known: dict[str, Columns] = {}

    def of(self, name: str) -> Columns | None:
        """Tell of the columns of the matrix `name`; matrices come in a model's order.

        Returns
        -------
        Columns or None
            None of an embedding: as a model's first matrix, it comes before anything is read.
        """
        if not name.startswith("model.layers."):
            return self._of_head() if name == HEAD else None
        while int(name.split(".")[2]) >= self._next_layer:
            self._read_layer()
        if name not in self._known:
            moments = self._moments[name]
            alike = [other for other, found in self._moments.items() if found is moments]
            for other in alike:
                del self._moments[other]
            importance = np.diag(moments) / np.float32(self._n_tokens)
            if not np.isfinite(importance).all():
                raise ConversionError(
                    f"tensor {name}: expected finite inputs, found a NaN or an infinity; the "
                    "model's weights are damaged, or too large for float32"
                )
            columns = Columns(importance, feedback_factor(moments, self._n_tokens))
            self._known = dict.fromkeys(alike, columns)
        return self._known[name]

    def _of_head(self) -> Columns:
        """Only mean squares: feedback would take longer than in a whole layer."""
        config = self._weights.config
        while self._next_layer < config.num_hidden_layers:
            self._read_layer()
        norm = self._weights.vector(FINAL_NORM)
        sums = np.zeros(config.hidden_size)
        for states in self._states:
            x = ops.rms_norm(states, norm, config.rms_norm_eps)
            sums += np.square(x).sum(axis=0, dtype=np.float64)
        return Columns((sums / self._n_tokens).astype(np.float32))

    def _add(self, name: str, x: F32) -> None:
        if self._last is not None and self._last[1] is x:
            self._moments[name] = self._moments[self._last[0]]
            return
        self._last = name, x
        if name in self._moments:
            self._moments[name] += x.T @ x
        else:
            self._moments[name] = x.T @ x

    def _read_layer(self) -> None:
        n_layers = self._weights.config.num_hidden_layers
        self._on_layer(self._next_layer, n_layers)
        self._moments.clear()
        for i, reading in enumerate(self._passes):
            self._states[i] = reading.after_layer(self._next_layer, self._states[i])
        self._next_layer += 1
        self._on_layer(self._next_layer, n_layers)
