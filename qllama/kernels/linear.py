"""Matrix products with packed weights: one generated kernel a weight type.

A kernel multiplies one tile of 16 weight rows with every token of a batch. Rows
sit in vector lanes, so there are no horizontal sums, and each token's floating
point operations come in the same order whatever the batch: block after block of
32 weights, exact integers inside a block. That makes every token's result
bit-identical for any batch, any chunk and any number of threads.

Storage of weights: `docs/format.md`. Storage of activations: `activation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from qllama.kernels import simd
from qllama.kernels._jit import cfunc, intrinsic
from qllama.kernels.amx_tile import generate_amx_groups, scratch_bytes
from qllama.kernels.isa import ISAS, Isa, current_isa
from qllama.kernels.register_tile import RegisterTile, generate_float_tile, generate_integer_tile
from qllama.kernels.simd import I8, I64, Value
from qllama.kernels.weight_kernels import Q8_BYTES, WEIGHT_KERNELS, WeightKernel
from qllama.quant.types import BLOCK

__all__ = ["build_linear", "call_linear", "generate_linear", "linear", "scratch_bytes"]

_INDEX = {kernel.name: index for index, kernel in enumerate(WEIGHT_KERNELS)}
_ISA_NAMES = tuple(ISAS)


@dataclass(frozen=True, slots=True)
class _Groups:
    """`n_groups` groups of `width` tokens, from token `first` of the batch on."""

    batch: RegisterTile
    width: int
    n_groups: Value
    first: Value
    token_bytes: Value

    def tile(self, index: Value) -> RegisterTile:
        """The tile of group number `index`."""
        b, batch = self.batch.b, self.batch
        first = b.add(self.first, b.mul(index, I64(self.width)))
        return replace(
            batch,
            width=self.width,
            activations=simd.at(b, batch.activations, b.mul(first, self.token_bytes)),
            out=simd.at(b, batch.out, b.mul(first, batch.out_stride)),
        )

    def generate(self, generate_tile: Callable[[RegisterTile], None]) -> None:
        """Generate the loop over the groups."""
        with cgutils.for_range(self.batch.b, self.n_groups) as loop:
            generate_tile(self.tile(loop.index))


def generate_linear(b: Any, kernel: WeightKernel, isa: Isa, arguments: Sequence[Value]) -> None:
    """Append the body of a kernel to a function.

    Parameters
    ----------
    b : llvmlite.ir.IRBuilder
    kernel : WeightKernel
        The weight type.
    isa : Isa
        The instruction set to generate for; not necessarily this machine's.
    arguments : sequence of i64
        What `build_linear` says, in this order.
    """
    weights, activations, out, n_blocks, n_tokens, out_stride, accumulate, scratch = arguments
    weights, activations, out, scratch = (
        b.inttoptr(v, I8.as_pointer()) for v in (weights, activations, out, scratch)
    )
    is_integer = kernel.activation == "q8"
    batch = RegisterTile(
        b=b,
        isa=isa,
        kernel=kernel,
        width=0,
        weights=weights,
        activations=activations,
        out=out,
        n_blocks=n_blocks,
        out_stride=out_stride,
        accumulate=b.icmp_signed("!=", accumulate, I64(0)),
    )
    token_bytes = b.mul(n_blocks, I64(Q8_BYTES if is_integer else 4 * BLOCK))
    done = I64(0)
    for width in isa.widths:
        n_groups = b.sdiv(b.sub(n_tokens, done), I64(width))
        groups = _Groups(batch, width, n_groups, done, token_bytes)
        if not is_integer:
            groups.generate(generate_float_tile)
        elif width == isa.matrix_width:
            with b.if_then(b.icmp_signed(">", n_groups, I64(0))):
                generate_amx_groups(batch, n_groups, groups.tile, scratch)
        else:
            groups.generate(generate_integer_tile)
        done = b.add(done, b.mul(n_groups, I64(width)))


@intrinsic(prefer_literal=True)
def _tile_row(
    _context: Any, kernel: Any, isa: Any, arguments: Any
) -> tuple[Any, Callable[..., Any]]:
    """Generate the whole kernel; `kernel` and `isa` are compile-time indices."""
    signature = types.void(kernel, isa, arguments)
    weight_kernel = WEIGHT_KERNELS[kernel.literal_value]
    chosen_isa = ISAS[_ISA_NAMES[isa.literal_value]]

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        generate_linear(b, weight_kernel, chosen_isa, cgutils.unpack_tuple(b, values[2]))
        return context.get_dummy_value()

    return signature, codegen


_LINEAR_SIGNATURE = types.void(*([types.int64] * 8))


def build_linear(name: str, isa: Isa) -> Any:
    """Compile the kernel of one weight type for one instruction set.

    Parameters
    ----------
    name : str
        One of `WEIGHT_KERNELS`.
    isa : Isa

    Returns
    -------
    numba CFunc
        `f(weights, activations, out, n_blocks, n_tokens, out_stride, accumulate, scratch)`,
        all int64: `weights` is the address of one tile, `activations` of the batch packed by
        `activation`, `out` of float32 outputs, token after token `out_stride` bytes
        apart, 16 values each; nonzero `accumulate` adds to what `out` holds; `scratch`
        of `scratch_bytes(n_tokens)` bytes, aligned to 64, that integer kernels may write; not
        touched for fewer tokens than `Isa.matrix_width`.
    """
    kernel_index, isa_index = _INDEX[name], _ISA_NAMES.index(isa.name)

    @cfunc(_LINEAR_SIGNATURE)
    def linear_tile(weights, activations, out, n_blocks, n_tokens, stride, accumulate, scratch):
        arguments = (weights, activations, out, n_blocks, n_tokens, stride, accumulate, scratch)
        _tile_row(kernel_index, isa_index, arguments)

    return linear_tile


@cache
def linear(name: str) -> Any:
    """The kernel of weight type `name` for this machine; compiled or loaded once."""
    return build_linear(name, current_isa())


@intrinsic
def call_linear(_context: Any, address: Any, arguments: Any) -> tuple[Any, Callable[..., Any]]:
    """Call a kernel of `build_linear` by its address, with its tuple of arguments."""
    signature = types.void(types.int64, arguments)

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(arguments))
        function = b.inttoptr(values[0], kind.as_pointer())
        b.call(function, cgutils.unpack_tuple(b, values[1]))
        return context.get_dummy_value()

    return signature, codegen
