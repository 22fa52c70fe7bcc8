"""`q8_0`: int8 codes, one float16 scale a block of 32; 8.5 bits a weight.

weight = scale * code, code in -128..127; the storage holds code + 128, unsigned.

Quantizing is `scale_search`'s, from 16 places of the weight of largest magnitude: code 127,
where ggml's `quantize_row_q8_0_ref` puts it, and -128 to -121.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qllama.quant.scaled import ScaledCodec
from qllama.quant.tile16 import tile_codes, untile_codes
from qllama.quant.types import BLOCK, QUANT_TYPES

__all__ = ["Q8_0Codec"]

_OFFSET = np.uint8(128)
_TILED = (BLOCK // 4, 16, 4)

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


class Q8_0Codec(ScaledCodec):
    """Codec of `q8_0`; `pack` takes int8 codes."""

    code_dtype = np.int8
    zero_code = 0
    least, greatest = -128, 127
    # 127 first: zero blocks get scale 0, not -0, as ggml's.
    starts: Float32 = np.array([127, *np.arange(-128, -120.5, 0.5)], np.float32)
    ggml_block_n_bytes = 34

    def __init__(self) -> None:
        super().__init__(QUANT_TYPES["q8_0"], 127 * float(np.finfo(np.float16).max))

    def codes_from_ggml(self, raw: UInt8) -> npt.NDArray[np.int8]:
        """Codes int8 (n, 32) of uint8 (n, 32): ggml stores them as they are."""
        return np.ascontiguousarray(raw).view(np.int8)

    def _codes_to_bytes(self, codes: npt.NDArray[np.int8]) -> UInt8:
        # Adding 128 modulo 256 flips the sign bit of two's complement.
        tiled = tile_codes(codes.view(np.uint8) ^ _OFFSET)
        return tiled.reshape(*tiled.shape[:2], -1)

    def _codes_from_bytes(self, stored: UInt8) -> npt.NDArray[np.int8]:
        codes = untile_codes(stored.reshape(*stored.shape[:2], *_TILED)) ^ _OFFSET
        return np.ascontiguousarray(codes).view(np.int8)
