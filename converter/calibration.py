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

from converter.check.weights import SourceWeights, StoredWeights, Weights
from converter.importance import multiplied_matrices
from converter.sources.registry import open_source
from converter.watched import Watched, passes
from qllama.errors import ConversionError
from qllama.format import QlmFile
from qllama.format.spec import MAGIC
from qllama.kernels import reference as ops
from qllama.progress import OnProgress
from qllama.tensors import EMBEDDING, FINAL_NORM, HEAD
from qllama.tokenizer import Tokenizer, load_tokenizer

__all__ = ["calibrate", "open_weights"]

F32 = npt.NDArray[np.float32]


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
        Told of a stage, of layers read, and of how many.

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
    config, n_layers = weights.config, weights.config.num_hidden_layers
    sums = {name: np.zeros(k) for name, k in multiplied_matrices(weights.shapes).items()}

    def add(name: str, x: F32) -> None:
        sums[name] += np.square(x).sum(axis=0, dtype=np.float64)
        if not np.isfinite(sums[name]).all():
            raise ConversionError(
                f"tensor {name}: expected finite inputs, found a NaN or an infinity; the model's "
                "weights are damaged, or too large for float32"
            )

    readings = passes(Watched(weights, add), windows)
    for i, reading in enumerate(readings):
        on_progress("reading the text", i * n_layers, len(readings) * n_layers)
        x = reading.embedded()
        for layer in range(n_layers):
            x = reading.after_layer(layer, x)
            on_progress("reading the text", i * n_layers + layer + 1, len(readings) * n_layers)
        head = EMBEDDING if config.tie_word_embeddings else HEAD
        add(head, ops.rms_norm(x, weights.vector(FINAL_NORM), config.rms_norm_eps))
    return sums
