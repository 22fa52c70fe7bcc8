"""MindSpore `.ckpt` files, written by the published layout alone, and damaged at will.

Each slice is a `Checkpoint` message with one `Value`; concatenated they parse as one. See
`checkpoint.proto` and `_exec_save` in mindspore's `train/serialization.py`.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

TYPES = {
    "float16": "Float16",
    "bfloat16": "BFloat16",
    "float32": "Float32",
    "float64": "Float64",
    "int8": "Int8",
    "int32": "Int32",
    "int64": "Int64",
    "bool": "Bool",
}
BF16 = np.dtype(ml_dtypes.bfloat16)
NUMPY_TYPES = {"float16": np.float16, "bfloat16": BF16, "float32": np.float32}


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def message(
    tag: str, dims: Sequence[int], tensor_type: str, content: bytes, packed: bool = False
) -> bytes:
    """One value; proto2 writes dims one by one, proto3 would pack them."""
    if packed:
        shape = field(1, b"".join(varint(d) for d in dims))
    else:
        shape = b"".join(varint(1 << 3) + varint(d) for d in dims)
    tensor = shape + field(2, tensor_type.encode()) + field(3, content)
    return field(1, field(1, tag.encode()) + field(2, tensor))


def tensor(tag: str, values: np.ndarray, slice_bytes: int = 1 << 29) -> bytes:
    """A tensor as `_write_parameter_bytes_data` writes it, in slices of so many bytes."""
    content = np.ascontiguousarray(values).tobytes()
    assert len(content) == math.prod(values.shape) * values.dtype.itemsize
    return b"".join(
        message(tag, values.shape, TYPES[values.dtype.name], content[i : i + slice_bytes])
        for i in range(0, len(content), slice_bytes)
    )


def array_split(tag: str, values: np.ndarray, n: int) -> bytes:
    """A tensor as `_write_parameter_data` writes it: `n` unequal runs of rows."""
    kind = TYPES[values.dtype.name]
    return b"".join(
        message(tag, values.shape, kind, part.tobytes()) for part in np.array_split(values, n)
    )


def checkpoint(tensors: Mapping[str, np.ndarray], slice_bytes: int = 1 << 29) -> bytes:
    return b"".join(tensor(tag, values, slice_bytes) for tag, values in tensors.items())


def with_crc(data: bytes) -> bytes:
    """What `save_checkpoint(crc_check=True)` appends."""
    return data + b"crc_num" + binascii.crc32(data).to_bytes(10, "big")
