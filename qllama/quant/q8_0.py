"""`q8_0`: int8 codes, one float16 scale a block of 32; 8.5 bits a weight.

weight = scale * code, code in -128..127; the storage holds code + 128, unsigned.

Quantizing, as ggml's `quantize_row_q8_0_ref`, in float32: d = max |w| / 127;
code = w * (1 / d), rounded half away from zero; the stored scale is d rounded to
float16 afterwards. A block whose 1 / d is not finite has all codes 0. With importance, as
`scale_search`.

Reference: ggml-quants.c; `gguf.quants.Q8_0` gives the same bits.
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
    starts: Float32 = np.arange(-128, -120, 0.5, dtype=np.float32)
    ggml_block_n_bytes = 34

    def __init__(self) -> None:
        super().__init__(QUANT_TYPES["q8_0"], 127 * float(np.finfo(np.float16).max))

    def encode_blocks(
        self, blocks: Float32
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
        """Quantize float32 (n, 32) to codes int8 (n, 32) and scales float16 (n,)."""
        d = np.abs(blocks).max(axis=1) / np.float32(127)
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.float32(1) / d
        inverse[~np.isfinite(inverse)] = 0
        scaled = blocks * inverse[:, None]
        magnitude = np.abs(scaled)
        whole = np.floor(magnitude)
        # Not floor(magnitude + 0.5): that sum would round 0.49999997 up to 1.
        whole += np.floor(np.float32(2) * (magnitude - whole))
        return np.copysign(whole, scaled).astype(np.int8), d.astype(np.float16)

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
