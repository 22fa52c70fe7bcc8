"""The weight types that are multiplied, and what a kernel has to know of each."""

from __future__ import annotations

from dataclasses import dataclass

from qllama.quant.types import QUANT_TYPES

__all__ = ["Q8_BYTES", "WEIGHT_KERNELS", "WeightKernel"]

#: Bytes of one token's block of quantized activations: start128, start8, scale,
#: sum (4 bytes each) and 32 codes.
Q8_BYTES = 48


@dataclass(frozen=True, slots=True)
class WeightKernel:
    """How one weight type is multiplied.

    Parameters
    ----------
    name : str
        The weight type of `docs/format.md`.
    activation : str
        `q8`: activations in blocks of int8; `f32`: plain float32.
    bits : int
        Of a stored code; 0 for floats.
    pair_bits : int
        Of the codes of a block's scale and minimum, 8 or 6, as `qllama.quant.tile16` packs
        them (`q4`, `q5` and `q6`); 0 if scales are floats, without a minimum.
    """

    name: str
    activation: str
    bits: int = 0
    pair_bits: int = 0

    @property
    def has_minimum(self) -> bool:
        """Whether blocks carry a minimum beside their scale."""
        return self.pair_bits > 0

    @property
    def alignment(self) -> int:
        """What all addresses of blocks are multiples of, in bytes."""
        return self.block_bytes & -self.block_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of 16 rows by 32 columns."""
        return QUANT_TYPES[self.name].tile_block_n_bytes

    def tile_bytes(self, n_blocks: int) -> int:
        """Bytes of one tile of 16 rows and `32 * n_blocks` columns."""
        return n_blocks * self.block_bytes + QUANT_TYPES[self.name].tile_tail_n_bytes


WEIGHT_KERNELS = (
    WeightKernel("f32", "f32"),
    WeightKernel("f16", "f32"),
    WeightKernel("bf16", "f32"),
    WeightKernel("q8_0", "q8", bits=8),
    WeightKernel("q4_0", "q8", bits=4),
    WeightKernel("q4", "q8", bits=4, pair_bits=8),
    WeightKernel("q5", "q8", bits=5, pair_bits=6),
    WeightKernel("q6", "q8", bits=6, pair_bits=8),
)
