"""What kernels read and write, made with plain numpy: aligned memory, packed activations.

Shares with the kernels only the documents: `qllama.kernels.activation` says how
activations are packed, `docs/format.md` section 3 how weights are stored.
"""

from __future__ import annotations

import os
from functools import cache

import numpy as np
from llvmlite import binding as llvm

from qllama.kernels import isa as isa_module
from qllama.kernels import reference
from qllama.kernels.activation import token_groups
from qllama.kernels.amx_tile import scratch_bytes
from qllama.kernels.isa import ISAS
from qllama.kernels.linear import build_linear
from qllama.kernels.permission import may_use_amx
from qllama.kernels.weight_kernels import WEIGHT_KERNELS

BLOCK = 32
TILE_ROWS = 16
#: Tokens of the widest group of any instruction set, and enough for two of those, the
#: next narrower ones and a single one.
WIDEST = max(isa.widths[0] for isa in ISAS.values())
MANY = 2 * WIDEST + 13
#: Numbers of tokens: up to one past the widest group, two of those, and many.
BATCHES = (*range(1, WIDEST + 2), 2 * WIDEST, MANY)
#: Unit roundoff of float32.
U = 2.0**-24

# Bytes behind a kernel's scratch memory that it must leave.
_GUARD = 256

KERNELS = {kernel.name: kernel for kernel in WEIGHT_KERNELS}
#: The CPU feature without which code for an instruction set does not run.
NEEDS = {
    "amx": "amx-int8",
    "avx512vnni": "avx512vnni",
    "avxvnni": "avxvnni",
    "avx2": "avx2",
    "neon": "dotprod",
    "portable": None,
}


def host_features():
    """Features of the CPU that this runs on, by LLVM's names."""
    listed = {name for name, present in llvm.get_host_cpu_features().items() if present}
    return listed | isa_module._llvm_features()  # no list has those of an ARM CPU


def runnable_isas():
    """Instruction sets that this CPU runs; only the forced one where `QLLAMA_ISA` is set."""
    forced = os.environ.get("QLLAMA_ISA")
    features = host_features() if may_use_amx() else host_features() - {"amx-int8"}
    return [
        isa
        for name, isa in ISAS.items()
        if (not forced or forced == name) and (NEEDS[name] is None or NEEDS[name] in features)
    ]


def gamma(n):
    """Bound of the relative error of `n` float32 roundings in a row (Higham 2002, lemma 3.1)."""
    return n * U / (1 - n * U)


def padded(n, multiple=BLOCK):
    return -(-n // multiple) * multiple


def aligned(shape, dtype=np.float32, fill=0):
    """An array at a multiple of 64 bytes, as mapped files and arenas have them."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + n_bytes].view(dtype).reshape(shape)
    array[...] = fill
    return array


def aligned_copy(array):
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def address(array):
    return array.ctypes.data


def pad_columns(x):
    """Float32 (n, k) with zero columns up to a multiple of 32."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK))).astype(np.float32)


def pack_f32(x, isa):
    """Pack float32 (n_tokens, k), k a multiple of 32: bytes at an aligned address."""
    groups = [x[first : first + width].T.reshape(-1) for first, width in token_groups(len(x), isa)]
    return aligned_copy(np.concatenate(groups).view(np.uint8))


def pack_q8(codes, scales, isa):
    """Pack int8 codes (n_tokens, k) and float32 scales (n_tokens, k / 32)."""
    groups = []
    for first, width in token_groups(len(codes), isa):
        block_codes = codes[first : first + width].reshape(width, -1, 8, 4)
        block_scales = scales[first : first + width].T
        totals = block_codes.sum((2, 3), dtype=np.int32).T
        columns = [
            -128 * totals,
            -8 * totals,
            block_scales.view(np.int32),
            (block_scales * totals.astype(np.float32)).view(np.int32),
        ]
        heads = np.stack(columns, axis=1)
        order = (1, 0, 2, 3) if width == isa.matrix_width else (1, 2, 0, 3)
        bodies = block_codes.transpose(order).reshape(len(totals), 8 * width, 4)
        bodies = np.ascontiguousarray(bodies).view(np.int32).reshape(len(totals), -1)
        groups.append(np.concatenate([heads.reshape(len(totals), -1), bodies], axis=1).reshape(-1))
    return aligned_copy(np.concatenate(groups).view(np.uint8))


def activations(x, name, isa):
    """Packed activations for weight type `name`, and the float32 values they stand for."""
    x = pad_columns(x)
    if KERNELS[name].activation == "f32":
        return pack_f32(x, isa), x
    codes, scales = reference.quantize_activations(x)
    return pack_q8(codes, scales, isa), reference.dequantize_activations(codes, scales)


build = cache(build_linear)


def multiply(name, isa, data, shape, packed, n_tokens, out=None, accumulate=0, kernel=None):
    """Run a kernel (of `build_linear`) over all tiles of a (rows, k) matrix.

    Returns float32 (n_tokens, rows).
    """
    rows, k = shape
    data = aligned_copy(data)
    n_blocks = padded(k) // BLOCK
    tile_bytes = KERNELS[name].tile_bytes(n_blocks)
    if out is None:
        # NaN shows what is not written.
        out = aligned((n_tokens, padded(rows, TILE_ROWS)), fill=np.nan)
    kernel = kernel or build(name, isa)
    scratch = aligned(scratch_bytes(n_tokens) + _GUARD, np.uint8, fill=0xAA)
    for tile in range(padded(rows, TILE_ROWS) // TILE_ROWS):
        kernel.ctypes(
            address(data) + tile * tile_bytes,
            address(packed),
            address(out) + 4 * TILE_ROWS * tile,
            n_blocks,
            n_tokens,
            out.strides[0],
            accumulate,
            address(scratch),
        )
    assert (scratch[-_GUARD:] == 0xAA).all()
    return out[:, :rows]
