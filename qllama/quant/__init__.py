"""Weight types and their numpy codecs: the definition that every kernel must equal."""

from qllama.quant.codec import BlockCodec, Codec
from qllama.quant.float import FloatCodec
from qllama.quant.registry import codec
from qllama.quant.scaled import ScaledCodec
from qllama.quant.types import (
    BLOCK,
    QUANT_TYPES,
    TILE_ROWS,
    QuantType,
    matrix_n_bytes,
    padded_shape,
    quant_type,
    vector_n_bytes,
)

__all__ = [
    "BLOCK",
    "QUANT_TYPES",
    "TILE_ROWS",
    "BlockCodec",
    "Codec",
    "FloatCodec",
    "QuantType",
    "ScaledCodec",
    "codec",
    "matrix_n_bytes",
    "padded_shape",
    "quant_type",
    "vector_n_bytes",
]
