"""`f32`, `f16`, `bf16`: weights as plain floating point numbers.

Storage of a tile: its values [k][r], 16 rows side by side; no scales. `f16` and
`bf16` round to nearest, ties to even. A weight beyond the type's largest finite
value is refused; a tiny one rounds to a subnormal or to zero.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qllama.quant.codec import Codec
from qllama.quant.types import QUANT_TYPES, TILE_ROWS

__all__ = ["FloatCodec"]

#: Storage dtype, and the largest finite value.
_TYPES: dict[str, tuple[np.dtype[Any], float]] = {
    "f32": (np.dtype("<f4"), float(np.finfo(np.float32).max)),
    "f16": (np.dtype("<f2"), float(np.finfo(np.float16).max)),
    "bf16": (np.dtype(ml_dtypes.bfloat16), (2 - 2.0**-7) * 2.0**127),
}


class FloatCodec(Codec):
    """The float type `name`.

    Parameters
    ----------
    name : str
        `f32`, `f16` or `bf16`.

    Attributes
    ----------
    dtype : numpy.dtype
        Of the stored values; `astype` to it rounds as the type does.
    """

    def __init__(self, name: str) -> None:
        self.dtype, largest = _TYPES[name]
        super().__init__(QUANT_TYPES[name], largest)

    def _encode(
        self, w: npt.NDArray[np.float32], h: npt.NDArray[np.float32] | None, fast: bool
    ) -> npt.NDArray[Any]:
        tiles = np.swapaxes(w.reshape(len(w) // TILE_ROWS, TILE_ROWS, -1), 1, 2)
        return np.ascontiguousarray(tiles.astype(self.dtype)).reshape(-1).view(np.uint8)

    def _decode(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        values = tiles.view(self.dtype).reshape(len(tiles), -1, TILE_ROWS)
        rows = np.swapaxes(values, 1, 2).reshape(-1, values.shape[1])
        return rows.astype(np.float32)
