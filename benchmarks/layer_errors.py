"""What weight types cost the outputs of single matrices, beside ggml's; see `--help`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click
import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from harness.document import new_document, write
from harness.layer_rows import LayerRow, layer_table
from harness.options import output_option
from qllama.kernels.quantize import quantize
from qllama.quant import codec, matrix_n_bytes
from qllama.quant.feedback import feedback_factor, with_feedback

Float32 = npt.NDArray[np.float32]

_OURS = ("q4", "q5", "q6", "q4_0", "q8_0")
_THEIRS = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
#: What quantizers are told of the inputs; feedback weights by importance, too.
_NOTHING, _IMPORTANCE, _FEEDBACK = "", "importance", "feedback"
#: ggml has no search without importance for these, and takes none.
_UNWEIGHTED = ("Q8_0",)
#: Columns of a large model's matrices. A row of `q4` has two factors however wide it is.
_WIDTH = 4096


@dataclass(frozen=True)
class Matrix:
    """A trained matrix.

    Parameters
    ----------
    w : float32, (rows, k)
    calibration, inputs : float32, (tokens, k)
        What it is multiplied with: to calibrate on, and to measure on.
    """

    w: Float32
    calibration: Float32
    inputs: Float32

    @property
    def importance(self) -> Float32:
        """Mean squares of the columns' inputs."""
        return np.square(self.calibration).mean(axis=0)

    @cached_property
    def factor(self) -> Float32:
        """As `with_feedback` takes it."""
        moments = self.calibration.T @ self.calibration
        return feedback_factor(moments, len(self.calibration))

    def error(self, decoded: Float32) -> float:
        """Root of the mean square error of outputs over that of the outputs."""
        return output_error(self.inputs, self.w, decoded)


@click.command(
    epilog="Example: python benchmarks/layer_errors.py trained.safetensors "
    "--ggml llama.cpp/build/bin/libggml-base.so"
)
@click.argument("trained", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--ggml",
    "library",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="llama.cpp's libggml-base.",
)
@output_option("layer_errors.json")
def main(trained: Path, library: Path, output: Path) -> None:
    """Compare X W with X W' for the matrices of TRAINED, a file of make_trained.py.

    W' is W quantized by qllama and by ggml, plainly, with the importance of columns, and by
    qllama with error feedback; X are the matrix's own inputs, of sequences that nothing else
    was measured on. An error is the root of the mean square of X W - X W' over that of X W.
    Where a type has factors a row, rows are joined until they are as wide as a large model's.
    """
    arrays = load_file(trained)
    names = [name.removesuffix(".weight") for name in arrays if name.endswith(".weight")]
    parts = ("weight", "calibration", "inputs")
    matrices = {name: Matrix(*(arrays[f"{name}.{part}"] for part in parts)) for name in names}
    ggml = _Ggml(library)
    rows = []
    for engine, type_name, told in _plan():
        row = LayerRow(engine, type_name, told, 0.0, {})
        quantizer = ggml.quantized if engine == "ggml" else quantized
        for name, matrix in matrices.items():
            decoded, bits = quantizer(type_name, matrix, told)
            row.bits_per_weight += bits / len(names)
            row.errors[name] = matrix.error(decoded)
        rows.append(row)
        click.echo(f"{engine} {type_name} {told}: {row.mean():.4%}", err=True)
    write(new_document("layer_errors", {"weights": trained.name}, {"layers": rows}), output)
    click.echo(layer_table(rows))


def _plan() -> Iterator[tuple[str, str, str]]:
    """Yield engine, type and what it is told."""
    for type_name in _OURS:
        for told in (_NOTHING, _IMPORTANCE, _FEEDBACK):
            yield "qllama", type_name, told
    for type_name in _THEIRS:
        yield "ggml", type_name, _NOTHING
        if type_name not in _UNWEIGHTED:
            yield "ggml", type_name, _IMPORTANCE


def output_error(inputs: Float32, w: Float32, decoded: Float32) -> float:
    expected = inputs.astype(np.float64) @ w.T.astype(np.float64)
    difference = inputs.astype(np.float64) @ (decoded - w).T.astype(np.float64)
    return float(np.sqrt((difference**2).mean() / (expected**2).mean()))


def quantized(type_name: str, matrix: Matrix, told: str) -> tuple[Float32, float]:
    """Quantize with qllama.

    Returns
    -------
    decoded : float32, (rows, k)
    bits : float
        A weight.
    """
    n_joined = _WIDTH // matrix.w.shape[1]
    w = matrix.w.reshape(-1, _WIDTH)
    importance = np.tile(matrix.importance, n_joined) if told else None
    data = quantize(type_name, w, 1, importance)
    if told == _FEEDBACK:
        factor = np.kron(np.eye(n_joined, dtype=np.float32), matrix.factor)
        data = with_feedback(type_name, w, data, factor)
    bits = 8 * matrix_n_bytes(type_name, *w.shape) / w.size
    return codec(type_name).dequantize(data, *w.shape).reshape(matrix.w.shape), bits


class _Ggml:
    """ggml's own quantizers, as llama-quantize calls them."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path.resolve()))
        self._library.ggml_quantize_chunk.restype = ctypes.c_size_t
        pointer = ctypes.c_void_p
        self._library.ggml_quantize_chunk.argtypes = [
            *(ctypes.c_int, pointer, pointer),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer),
        ]

    def quantized(self, type_name: str, matrix: Matrix, told: str) -> tuple[Float32, float]:
        """As `quantized` alone, with ggml."""
        kind = gguf.GGMLQuantizationType[type_name]
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        rows, k = matrix.w.shape
        out = np.empty((rows, k // block * n_bytes), np.uint8)
        importance = matrix.importance
        weights = importance.ctypes.data if told else None
        self._library.ggml_quantize_chunk(
            int(kind), matrix.w.ctypes.data, out.ctypes.data, 0, rows, k, weights
        )
        return gguf.quants.dequantize(out, kind), 8 * n_bytes / block


if __name__ == "__main__":
    main()
