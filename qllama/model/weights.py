"""Binds the tensors of a `.qlm` file to the records of the compiled forward pass.

Matrices are used where they lie in the mapped file. Vectors (norms, biases) are
small: they are copied, as float32 padded with zeros.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qllama.errors import BadTensorError
from qllama.format import QlmFile
from qllama.kernels.linear import linear
from qllama.kernels.weight_kernels import WEIGHT_KERNELS
from qllama.model.records import LAYER, LINEAR, MATRICES
from qllama.quant.types import BLOCK, TILE_ROWS
from qllama.tensors import EMBEDDING, FINAL_NORM, HEAD, ROPE_DIVISORS, differences, expected_shapes

__all__ = ["Weights"]

_KERNELS = {kernel.name: (index, kernel) for index, kernel in enumerate(WEIGHT_KERNELS)}


class Weights:
    """A model's tensors, as the records `decoder.decoder_step` reads.

    Parameters
    ----------
    file : QlmFile
        Kept open as long as this lives.

    Attributes
    ----------
    layers : LAYER records, (n_layers,)
    linears : LINEAR records, (n_layers + 1, 7)
    final_norm : int
        Address of float32, (hidden_size,), padded.
    rope_divisors : float32, (head_dim / 2,), or None
    packings : set of str
        Kinds of packed activations that the matrices read: `q8`, `f32`.

    Raises
    ------
    BadTensorError
        A tensor is missing, unknown, or has another shape than the config says.
    """

    def __init__(self, file: QlmFile) -> None:
        self._file = file
        self._vectors: list[npt.NDArray[np.float32]] = []
        self.packings: set[str] = set()
        config = file.config
        shapes = expected_shapes(config)
        self._check(shapes)
        n_layers = config.num_hidden_layers
        self.layers = np.zeros(n_layers, LAYER)
        self.linears = np.zeros((n_layers + 1, len(MATRICES)), LINEAR)
        for i in range(n_layers):
            prefix = f"model.layers.{i}."
            self.layers[i] = (
                self._vector(prefix + "input_layernorm.weight"),
                self._vector(prefix + "post_attention_layernorm.weight"),
                self._vector(prefix + "self_attn.q_norm.weight"),
                self._vector(prefix + "self_attn.k_norm.weight"),
            )
            for j, matrix in enumerate(MATRICES):
                self._bind((i, j), prefix + matrix)
        self._bind((n_layers, 0), EMBEDDING.removesuffix(".weight"))
        head = EMBEDDING if config.tie_word_embeddings else HEAD
        self._bind((n_layers, 1), head.removesuffix(".weight"))
        self.final_norm = self._vector(FINAL_NORM)
        self.rope_divisors = file.vector(ROPE_DIVISORS) if ROPE_DIVISORS in shapes else None

    def _check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = self._file.tensors
        for problem in differences(shapes, {name: t.shape for name, t in tensors.items()}):
            raise BadTensorError(f"{self._file.path}: {problem}; convert the model again")

    def _vector(self, name: str) -> int:
        """Address of a vector padded with zeros to a multiple of 32; 0 if there is none."""
        if name not in self._file.tensors:
            return 0
        values = self._file.vector(name)
        padded = np.zeros(-(-len(values) // BLOCK) * BLOCK, np.float32)
        padded[: len(values)] = values
        self._vectors.append(padded)
        return int(padded.ctypes.data)

    def _bind(self, place: tuple[int, int], name: str) -> None:
        """Fill in the LINEAR record of one matrix."""
        tensor = self._file.tensors[name + ".weight"]
        index, kernel = _KERNELS[tensor.type]
        self.packings.add(kernel.activation)
        rows, columns = tensor.shape
        n_blocks = -(-columns // BLOCK)
        fields = {
            "weights": self._file.data(name + ".weight").ctypes.data,
            "kernel": linear(kernel.name).address,
            "weight_type": index,
            "packing": kernel.activation == "f32",
            "tile_bytes": kernel.tile_bytes(n_blocks),
            "n_tiles": -(-rows // TILE_ROWS),
            "n_blocks": n_blocks,
            "bias": self._vector(name + ".bias"),
        }
        for field, value in fields.items():
            self.linears[place][field] = value
