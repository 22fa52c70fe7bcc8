"""The one door to numba: decorators that cache compiled kernels for the user.

Owns where machine code is cached and how numba is configured. numba's own cache
key misses edits in imported files, so the cache directory is keyed by a hash of
every kernel source: any edit starts an empty cache. numba's global cache
directory is changed only while one of our functions is being decorated.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numba.core.codegen
import numba.core.config
import numba.extending
import numba.np.numpy_support

from qllama.kernels.permission import may_use_amx
from qllama.paths import cache_dir

__all__ = [
    "carray",
    "cfunc",
    "host_cpu_features",
    "inlined",
    "intrinsic",
    "kernel_cache_dir",
    "njit",
    "numba_config",
]

# numba is typed in parts only; what the kernels use of it passes through here untyped.
numba_config: Any = numba.core.config
intrinsic: Any = numba.extending.intrinsic
#: A function for both worlds: Python calls it as it is, kernels compile it in.
inlined: Any = numba.extending.register_jitable
carray: Any = numba.np.numpy_support.carray
host_cpu_features: Any = numba.core.codegen.get_host_cpu_features

# Constants of `quant` are compiled into kernels.
_SOURCE_DIRS = tuple(Path(__file__).parents[1] / name for name in ("kernels", "model", "quant"))


@cache
def kernel_cache_dir() -> Path:
    """Directory of this build's machine code, whether it exists yet or not."""
    digest = hashlib.sha256()
    for source in sorted(p for d in _SOURCE_DIRS for p in d.rglob("*.py")):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    for version in (numba.__version__, llvmlite.__version__, platform.python_version()):
        digest.update(version.encode())
    # numba's key knows the CPU, but not the instruction set that was asked for or granted.
    digest.update(os.environ.get("QLLAMA_ISA", "").encode())
    digest.update(b"amx" if may_use_amx() else b"")
    return cache_dir() / "kernels" / digest.hexdigest()[:16]


@contextmanager
def _cache_directory() -> Iterator[bool]:
    """Point numba at our cache; yields False where it cannot be written."""
    directory = kernel_cache_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        yield False
        return
    if not os.access(directory, os.W_OK):
        yield False
        return
    before = numba_config.CACHE_DIR
    numba_config.CACHE_DIR = str(directory)
    try:
        yield True
    finally:
        numba_config.CACHE_DIR = before


def njit(function: Callable[..., Any]) -> Any:
    """Compile for any caller: no GIL, no division checks, cached on disk.

    Floating point stays strict (no fastmath): results must not depend on how
    LLVM happened to group operations.
    """
    with _cache_directory() as writable:
        return numba.njit(nogil=True, error_model="numpy", cache=writable)(function)


def cfunc(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile now, as a C function whose `.address` other kernels call; cached on disk."""

    def decorate(function: Callable[..., Any]) -> Any:
        with _cache_directory() as writable:
            return numba.cfunc(signature, error_model="numpy", cache=writable)(function)

    return decorate
