"""What weight types cost the outputs of single matrices, beside ggml's; see `--help`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
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

Float32 = npt.NDArray[np.float32]
Quantizer = Callable[[Float32, Float32], tuple[Float32, float]]

_OURS = ("q4", "q6", "q4_0", "q8_0")
_THEIRS = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
#: ggml has no search without importance for these, and takes none.
_UNWEIGHTED = ("Q8_0",)


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

    W' is W quantized, plainly and with the importance of columns, by qllama and by ggml;
    X are the matrix's own inputs, of sequences that the importance is not of. An error is
    the root of the mean square of X W - X W' over that of X W.
    """
    arrays = load_file(trained)
    names = [name.removesuffix(".weight") for name in arrays if name.endswith(".weight")]
    ggml = _Ggml(library)
    rows = []
    for engine, types, make in (("qllama", _OURS, _ours), ("ggml", _THEIRS, ggml.quantizer)):
        for type_name in types:
            for is_weighted in (False, True):
                if is_weighted and type_name in _UNWEIGHTED:
                    continue
                quantizer = make(type_name, is_weighted)
                row = LayerRow(engine, type_name, is_weighted, 0.0, {})
                for name in names:
                    w = arrays[f"{name}.weight"]
                    decoded, bits = quantizer(w, arrays[f"{name}.importance"])
                    row.bits_per_weight += bits / len(names)
                    row.errors[name] = output_error(arrays[f"{name}.inputs"], w, decoded)
                rows.append(row)
                click.echo(f"{engine} {type_name} {is_weighted}: {row.mean():.4%}", err=True)
    write(new_document("layer_errors", {"weights": trained.name}, {"layers": rows}), output)
    click.echo(layer_table(rows))


def output_error(inputs: Float32, w: Float32, decoded: Float32) -> float:
    expected = inputs.astype(np.float64) @ w.T.astype(np.float64)
    difference = inputs.astype(np.float64) @ (decoded - w).T.astype(np.float64)
    return float(np.sqrt((difference**2).mean() / (expected**2).mean()))


def _ours(type_name: str, is_weighted: bool) -> Quantizer:
    def quantizer(w: Float32, importance: Float32) -> tuple[Float32, float]:
        data = quantize(type_name, w, 1, importance if is_weighted else None)
        bits = 8 * matrix_n_bytes(type_name, *w.shape) / w.size
        return codec(type_name).dequantize(data, *w.shape), bits

    return quantizer


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

    def quantizer(self, type_name: str, is_weighted: bool) -> Quantizer:
        kind = gguf.GGMLQuantizationType[type_name]
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]

        def quantizer(w: Float32, importance: Float32) -> tuple[Float32, float]:
            rows, k = w.shape
            out = np.empty((rows, k // block * n_bytes), np.uint8)
            weights = importance.ctypes.data if is_weighted else None
            self._library.ggml_quantize_chunk(
                int(kind), w.ctypes.data, out.ctypes.data, 0, rows, k, weights
            )
            return gguf.quants.dequantize(out, kind), 8 * n_bytes / block

        return quantizer


if __name__ == "__main__":
    main()
