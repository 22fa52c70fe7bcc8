"""Where compiled kernels are cached, and that no stale one is ever loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from qllama import kernels, model, quant
from qllama.kernels import _jit

SOURCES = [Path(package.__file__).parent for package in (kernels, model, quant)]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Copies of the sources that compiled code is made from; the cache key reads them."""
    monkeypatch.setenv("QLLAMA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("QLLAMA_ISA", raising=False)
    copies = [tmp_path / source.name for source in SOURCES]
    for source, copy in zip(SOURCES, copies, strict=True):
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(_jit, "_SOURCE_DIRS", tuple(copies))
    return copies


def directory():
    return _jit.kernel_cache_dir.__wrapped__()


def test_kernel_cache_dir_hashes_kernels_model_and_quant():
    # Constants of quant (block sizes, steps of the q4 search) are compiled into kernels.
    assert set(_jit._SOURCE_DIRS) == set(SOURCES)


def test_kernel_cache_dir_changes_with_any_source(sources):
    seen = {directory()}
    files = [file for source in sources for file in sorted(source.rglob("*.py"))]
    assert len(files) > 30
    for file in files:
        file.write_bytes(file.read_bytes() + b"\n")
        seen.add(directory())
    assert len(seen) == len(files) + 1


def test_kernel_cache_dir_changes_with_a_new_or_renamed_source(sources):
    first = directory()
    (sources[0] / "extra.py").write_text("X = 1\n")
    second = directory()
    (sources[0] / "extra.py").rename(sources[0] / "extra_2.py")
    assert len({first, second, directory()}) == 3


@pytest.mark.parametrize("module", ["numba", "llvmlite"])
def test_kernel_cache_dir_changes_with_the_compiler(sources, monkeypatch, module):
    before = directory()
    monkeypatch.setattr(sys.modules[module], "__version__", "0.0.1")
    assert directory() != before


def test_kernel_cache_dir_changes_with_the_forced_isa(sources, monkeypatch):
    # numba's own key knows the CPU but not which kernels were generated for it.
    seen = {directory()}
    for name in ("avx512vnni", "avx2", "portable"):
        monkeypatch.setenv("QLLAMA_ISA", name)
        seen.add(directory())
    assert len(seen) == 4


def test_kernel_cache_dir_is_the_same_for_the_same_sources(sources, tmp_path):
    assert directory() == directory()
    assert directory().parent == tmp_path / "cache" / "kernels"


def test_kernel_cache_dir_is_not_made_by_asking(sources):
    assert not directory().exists()


def test_kernel_cache_leaves_the_users_numba_settings_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    _jit.njit(lambda x: x)
    _jit.cfunc("int64(int64)")(lambda x: x)
    assert str(tmp_path) == numba.config.CACHE_DIR
    assert not list(tmp_path.iterdir())


PROGRAM = """
import numpy as np
from qllama.kernels.isa import current_isa
from qllama.kernels.activation import group_of, token_groups
from qllama.kernels.linear import linear
x, y, out = (np.arange(64, dtype=np.float32) for _ in range(3))
groups = token_groups(31, current_isa())
assert [group_of(first, 31) for first, _ in groups] == groups, groups
w = np.ones((32, 16), np.float16)
linear("f16").ctypes(w.ctypes.data, x.ctypes.data, out.ctypes.data, 1, 1, 64, 0, 0)
assert (out[:16] == x[:32].sum()).all()
"""


def run(program, **variables):
    environment = {k: v for k, v in os.environ.items() if k != "QLLAMA_ISA"} | variables
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def cached_files(cache):
    return sorted(path.name for path in (cache / "kernels").rglob("*.nb[ci]"))


def test_kernel_cache_is_filled_once_and_used_again(tmp_path):
    run(PROGRAM, QLLAMA_CACHE_DIR=str(tmp_path))
    files = cached_files(tmp_path)
    assert any("linear_tile" in name for name in files)
    assert any("group_of" in name for name in files)
    run(PROGRAM, QLLAMA_CACHE_DIR=str(tmp_path))
    assert cached_files(tmp_path) == files


def test_kernel_cache_serves_no_kernel_of_another_isa(tmp_path):
    run(PROGRAM, QLLAMA_CACHE_DIR=str(tmp_path))
    run(PROGRAM, QLLAMA_CACHE_DIR=str(tmp_path), QLLAMA_ISA="portable")
    run(PROGRAM, QLLAMA_CACHE_DIR=str(tmp_path))


def test_kernel_cache_that_cannot_be_made_is_done_without(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a directory")
    run(PROGRAM, QLLAMA_CACHE_DIR=str(file))
    assert file.read_text() == "not a directory"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_kernel_cache_that_cannot_be_written_is_done_without(tmp_path):
    tmp_path.chmod(0o555)
    run(PROGRAM, QLLAMA_CACHE_DIR=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
