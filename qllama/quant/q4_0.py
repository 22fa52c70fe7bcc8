"""`q4_0`: 4-bit codes around 8, one float16 scale a block of 32; 4.5 bits a weight.

weight = scale * (code - 8), code in 0..15; two codes share a byte.

Quantizing is `scale_search`'s, from 16 places of the weight of largest magnitude: code -8,
where ggml's `quantize_row_q4_0_ref` puts it, and others from -9.25 to -5.5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qllama.errors import ConversionError
from qllama.quant.scaled import ScaledCodec
from qllama.quant.tile16 import join_nibbles, split_nibbles, tile_codes, untile_codes
from qllama.quant.types import BLOCK, QUANT_TYPES

__all__ = ["Q4_0Codec"]

_TILED_BYTES = (BLOCK // 8, 16, 4)

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


class Q4_0Codec(ScaledCodec):
    """Codec of `q4_0`; `pack` takes uint8 codes in 0..15."""

    code_dtype = np.uint8
    zero_code = 8
    least, greatest = -8, 7
    starts: Float32 = np.array(
        [-8, *np.arange(-9.25, -8, 0.25), *np.arange(-7.75, -5.25, 0.25)], np.float32
    )
    ggml_block_n_bytes = 18

    def __init__(self) -> None:
        super().__init__(QUANT_TYPES["q4_0"], 8 * float(np.finfo(np.float16).max))

    def codes_from_ggml(self, raw: UInt8) -> UInt8:
        """Codes uint8 (n, 32) of uint8 (n, 16): low halves are elements 0..15."""
        return np.concatenate([raw & np.uint8(15), raw >> np.uint8(4)], axis=1)

    def _codes_to_bytes(self, codes: UInt8) -> UInt8:
        if codes.max() > 15:
            raise ConversionError(f"q4_0 codes: expected 0..15, found {codes.max()}")
        joined = join_nibbles(tile_codes(codes))
        return joined.reshape(*joined.shape[:2], -1)

    def _codes_from_bytes(self, stored: UInt8) -> UInt8:
        return untile_codes(split_nibbles(stored.reshape(*stored.shape[:2], *_TILED_BYTES)))
