"""Codecs by name: the one place that knows every weight type's class."""

from __future__ import annotations

from typing import Literal, overload

from qllama.quant.affine import AffineCodec
from qllama.quant.codec import Codec
from qllama.quant.float import FloatCodec
from qllama.quant.q4_0 import Q4_0Codec
from qllama.quant.q8_0 import Q8_0Codec
from qllama.quant.scaled import ScaledCodec
from qllama.quant.types import quant_type

__all__ = ["codec"]

_CODECS: dict[str, Codec] = {
    found.kind.name: found
    for found in (
        FloatCodec("f32"),
        FloatCodec("f16"),
        FloatCodec("bf16"),
        Q8_0Codec(),
        Q4_0Codec(),
        AffineCodec("q4"),
        AffineCodec("q5"),
        AffineCodec("q6"),
    )
}


@overload
def codec(name: Literal["q8_0", "q4_0"]) -> ScaledCodec: ...
@overload
def codec(name: str) -> Codec: ...
def codec(name: str) -> Codec:
    """Find the codec of a weight type.

    Raises
    ------
    UnsupportedModelError
        When there is no such type.
    """
    return _CODECS[quant_type(name).name]
