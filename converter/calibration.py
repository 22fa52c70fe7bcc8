"""Has a model read a text and sums up the squares of what each matrix is multiplied with.

Owns the sums. The pass is the self-check's, in float32 on BLAS, which streams the weights
from wherever they are: a checkpoint needs no conversion first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converter.check.forward import Reading, Text, hidden_states
from converter.check.weights import SourceWeights, StoredWeights, Weights
from converter.importance import multiplied_matrices
from converter.sources.registry import open_source
from qllama.errors import ContextLengthError, ConversionError
from qllama.format import QlmFile
from qllama.format.spec import MAGIC
from qllama.kernels import reference as ops
from qllama.progress import OnProgress
from qllama.tensors import EMBEDDING, FINAL_NORM, HEAD
from qllama.tokenizer import Tokenizer, load_tokenizer

__all__ = ["calibrate", "open_weights"]

F32 = npt.NDArray[np.float32]
# States and the wide activations of an 8B take 0.5 GB; weights are decoded once for these.
_TOKENS_TOGETHER = 2048


@contextmanager
def open_weights(path: Path) -> Iterator[tuple[Weights, Tokenizer]]:
    """Open a `.qlm` file or a checkpoint of any format.

    Raises
    ------
    QlmFormatError, ConversionError, UnsupportedModelError, TokenizerError
        When it cannot be opened.
    """
    if path.is_file() and path.open("rb").read(len(MAGIC)) == MAGIC:
        with QlmFile.open(path) as file:
            yield StoredWeights(file), load_tokenizer(file.tokenizer, file.tokenizer_blob)
    else:
        source = open_source(path)
        yield SourceWeights(source.config, source.tensors), load_tokenizer(*source.tokenizer)


def calibrate(
    weights: Weights, windows: npt.NDArray[np.int32], on_progress: OnProgress
) -> dict[str, npt.NDArray[np.float64]]:
    """Sum up the squares of the inputs of every matrix that vectors are multiplied by.

    Parameters
    ----------
    weights : Weights
    windows : int32, (n_windows, n_ctx)
        Tokens, each window read by itself.
    on_progress : callable
        Told of a stage, the windows done, and of how many.

    Returns
    -------
    dict
        float64 (k,) by the matrix's name.

    Raises
    ------
    ContextLengthError
        When a window is longer than the model's context.
    ConversionError
        When an input is not finite.
    """
    n_windows, n_ctx = windows.shape
    config = weights.config
    if n_ctx > config.max_position_embeddings:
        raise ContextLengthError(
            f"windows: expected at most {config.max_position_embeddings} tokens, the model's "
            f"context, found {n_ctx}; give a smaller -c"
        )
    observed = _Observed(weights)
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    reading = Reading(config.rope_theta)
    step = max(1, _TOKENS_TOGETHER // n_ctx)
    for first in range(0, n_windows, step):
        on_progress("reading windows", first, n_windows)
        texts = [Text(w, range(n_ctx), reading) for w in windows[first : first + step].tolist()]
        states = hidden_states(observed, texts, config.num_hidden_layers, lambda *_: None)
        norm = weights.vector(FINAL_NORM)
        observed.add(head, ops.rms_norm(np.concatenate(states), norm, config.rms_norm_eps))
    on_progress("reading windows", n_windows, n_windows)
    return observed.sums


class _Observed(Weights):
    """Weights that sum up the squares of what they are multiplied with."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights.config, weights.shapes)
        self._weights = weights
        self.sums = {name: np.zeros(k) for name, k in multiplied_matrices(weights.shapes).items()}

    def add(self, name: str, x: F32) -> None:
        self.sums[name] += np.square(x).sum(axis=0, dtype=np.float64)
        if not np.isfinite(self.sums[name]).all():
            raise ConversionError(
                f"tensor {name}: expected finite inputs, found a NaN or an infinity; the model's "
                "weights are damaged, or too large for float32"
            )

    def linear(self, x: F32, name: str) -> F32:
        self.add(name + ".weight", x)
        return self._weights.linear(x, name)

    def read(self, name: str, start: int, stop: int) -> F32:
        return self._weights.read(name, start, stop)

    def vector(self, name: str) -> F32:
        return self._weights.vector(name)
