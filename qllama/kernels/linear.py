"""Matrix products with packed weights: one generated kernel a weight type.

A kernel multiplies one tile of 16 weight rows with every token of a batch. Rows
sit in vector lanes, so there are no horizontal sums, and each token's floating
point operations come in the same order whatever the batch: block after block of
32 weights, exact integers inside a block. That makes every token's result
bit-identical for any batch, any chunk and any number of threads.

Storage of weights: `docs/format.md`. Storage of activations: `activation`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from qllama.kernels import simd
from qllama.kernels._jit import cfunc, intrinsic
from qllama.kernels.isa import ISAS, Isa, current_isa
from qllama.kernels.register_tile import RegisterTile, generate_float_tile, generate_integer_tile
from qllama.kernels.simd import I8, I64
from qllama.kernels.weight_kernels import Q8_BYTES, WEIGHT_KERNELS
from qllama.quant.types import BLOCK

__all__ = ["build_linear", "call_linear", "linear"]

_INDEX = {kernel.name: index for index, kernel in enumerate(WEIGHT_KERNELS)}
_ISA_NAMES = tuple(ISAS)


@intrinsic(prefer_literal=True)
def _tile_row(
    _context: Any, kernel: Any, isa: Any, arguments: Any
) -> tuple[Any, Callable[..., Any]]:
    """Generate the whole kernel; `kernel` and `isa` are compile-time indices."""
    signature = types.void(kernel, isa, arguments)
    weight_kernel = WEIGHT_KERNELS[kernel.literal_value]
    chosen_isa = ISAS[_ISA_NAMES[isa.literal_value]]

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        inner = cgutils.unpack_tuple(b, values[2])
        weights, activations, out, n_blocks, n_tokens, out_stride, accumulate = inner
        pointer = I8.as_pointer()
        weights, activations, out = (b.inttoptr(v, pointer) for v in (weights, activations, out))
        accumulate = b.icmp_signed("!=", accumulate, I64(0))
        if weight_kernel.activation == "q8":
            generate, token_bytes = generate_integer_tile, b.mul(n_blocks, I64(Q8_BYTES))
        else:
            generate, token_bytes = generate_float_tile, b.mul(n_blocks, I64(4 * BLOCK))
        done = I64(0)
        for width in chosen_isa.widths:
            n_groups = b.sdiv(b.sub(n_tokens, done), I64(width))
            with cgutils.for_range(b, n_groups) as loop:
                first = b.add(done, b.mul(loop.index, I64(width)))
                generate(
                    RegisterTile(
                        b=b,
                        isa=chosen_isa,
                        kernel=weight_kernel,
                        width=width,
                        weights=weights,
                        activations=simd.at(b, activations, b.mul(first, token_bytes)),
                        out=simd.at(b, out, b.mul(first, out_stride)),
                        n_blocks=n_blocks,
                        out_stride=out_stride,
                        accumulate=accumulate,
                    )
                )
            done = b.add(done, b.mul(n_groups, I64(width)))
        return context.get_dummy_value()

    return signature, codegen


_LINEAR_SIGNATURE = types.void(*([types.int64] * 7))


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
        `f(weights, activations, out, n_blocks, n_tokens, out_stride, accumulate)`, all
        int64: `weights` is the address of one tile, `activations` of the batch packed by
        `activation`, `out` of float32 outputs, token after token `out_stride` bytes
        apart, 16 values each; nonzero `accumulate` adds to what `out` holds.
    """
    kernel_index, isa_index = _INDEX[name], _ISA_NAMES.index(isa.name)

    @cfunc(_LINEAR_SIGNATURE)
    def linear_tile(weights, activations, out, n_blocks, n_tokens, out_stride, accumulate):
        arguments = (weights, activations, out, n_blocks, n_tokens, out_stride, accumulate)
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
