"""Which instruction set the kernels are generated for.

Owns the choice and what it fixes: vector width, and how many tokens one register
tile holds. Code generation itself is in `simd`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from llvmlite import binding as llvm

from qllama.errors import KernelError
from qllama.kernels._jit import host_cpu_features, numba_config
from qllama.kernels.arm import arm_features
from qllama.kernels.permission import may_use_amx
from qllama.quant.types import TILE_ROWS

__all__ = ["ISAS", "Isa", "current_isa"]


@dataclass(frozen=True, slots=True)
class Isa:
    """One way to generate the kernels.

    Parameters
    ----------
    name : str
        What the environment variable `QLLAMA_ISA` takes; see `ISAS`.
    lanes : int
        32-bit lanes of a register: 16 rows are handled as 16 / lanes registers.
    sums : int
        How many vectors of running sums a register tile may have, if it has the choice.
    widths : tuple of int
        Tokens in a register tile, widest first; the last is 1. A batch is cut into
        groups of these widths, and packed activations are laid out by group.
    needs : set of str
        The CPU features it takes, by LLVM's names.
    signed : bool
        Whether products of bytes take 8-bit weights as signed bytes.
    matrix_width : int
        The width of groups that matrix instructions multiply; 0 if there are none.
    """

    name: str
    lanes: int
    sums: int
    widths: tuple[int, ...]
    needs: frozenset[str]
    signed: bool = False
    matrix_width: int = 0

    def row_registers(self, width: int) -> int:
        """How many of a tile's registers of rows `width` tokens take at once."""
        return min(TILE_ROWS // self.lanes, max(1, self.sums // width))

    @property
    def vector_widths(self) -> tuple[int, ...]:
        """The widths of the groups whose sums are kept in vector registers."""
        return tuple(width for width in self.widths if width != self.matrix_width)

    @property
    def has_fma(self) -> bool:
        """Whether fused multiply-add is an instruction."""
        return not self.needs.isdisjoint({"fma", "neon"})

    @property
    def has_f16(self) -> bool:
        """Whether half-precision conversion is an instruction."""
        return not self.needs.isdisjoint({"f16c", "neon"})

    @property
    def has_lane_operands(self) -> bool:
        """Whether a product takes one lane of a register for all lanes of the other."""
        return "neon" in self.needs


_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512VNNI = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512vnni"}

#: Best first. The sums of a tile and the float totals they are added to must fit the
#: registers: 12 and 12 of AVX-512's 32, 6 and 6 of AVX2's 16 beside weights and constants.
ISAS = {
    isa.name: isa
    for isa in (
        Isa(
            "amx",
            lanes=16,
            sums=12,
            widths=(16, 12, 8, 4, 3, 2, 1),
            needs=_AVX512VNNI | {"amx-tile", "amx-int8"},
            matrix_width=16,
        ),
        Isa("avx512vnni", lanes=16, sums=12, widths=(12, 8, 4, 3, 2, 1), needs=_AVX512VNNI),
        Isa("avxvnni", lanes=8, sums=6, widths=(6, 4, 2, 1), needs=_AVX2 | {"avxvnni"}),
        Isa("avx2", lanes=8, sums=6, widths=(6, 4, 2, 1), needs=_AVX2, signed=True),
        Isa(
            "neon",
            lanes=4,
            sums=8,
            widths=(8, 4, 2, 1),
            needs=frozenset({"neon", "dotprod"}),
            signed=True,
        ),
        Isa("portable", lanes=4, sums=8, widths=(4, 2, 1), needs=frozenset()),
    )
}


def _llvm_features() -> set[str]:
    """Features that numba generates code for and the system lets us use, by LLVM's names."""
    flags = numba_config.CPU_FEATURES
    if flags is None:
        flags = host_cpu_features()  # what LLVM says, less what NUMBA_ENABLE_AVX=0 forbids
    features = {flag[1:] for flag in flags.split(",") if flag.startswith("+")}
    cpu = numba_config.CPU_NAME or llvm.get_host_cpu_name()
    features |= arm_features(llvm.get_process_triple(), cpu, flags)
    return features if may_use_amx() else features - {"amx-tile", "amx-int8"}


@cache
def current_isa() -> Isa:
    """Choose by what LLVM says of this CPU; `QLLAMA_ISA` overrides.

    Raises
    ------
    KernelError
        When `QLLAMA_ISA` names no known instruction set, or one that this CPU lacks.
    """
    possible = [isa for isa in ISAS.values() if isa.needs <= _llvm_features()]
    forced = os.environ.get("QLLAMA_ISA")
    if not forced:
        return possible[0]
    if forced not in ISAS:
        raise KernelError(f"QLLAMA_ISA: expected one of {', '.join(ISAS)}, found {forced!r}")
    if ISAS[forced] not in possible:
        names = ", ".join(isa.name for isa in possible)
        raise KernelError(f"QLLAMA_ISA: this CPU has no {forced}; it can run {names}")
    return ISAS[forced]
