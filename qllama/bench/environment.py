"""Where a measurement was taken: the machine, the versions, the state of the source."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy
import psutil

from qllama import __version__
from qllama.kernels.isa import current_isa

__all__ = ["environment"]

_CPU_INFO = Path("/proc/cpuinfo")
_PACKAGE_ROOT = Path(__file__).parents[2]
# What is measured and what measures it; the documents of results lie elsewhere.
_SOURCES = ("qllama", "converter", "benchmarks")


def environment() -> dict[str, Any]:
    """Describe this machine and this program, as plain JSON values.

    `git` is None where qllama does not run from a checkout.
    """
    return {
        "cpu": _cpu_name(),
        "isa": current_isa().name,
        "n_cpus": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "qllama": __version__,
        "git": _git_state(_PACKAGE_ROOT),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
    }


def _cpu_name() -> str:
    try:
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _git_state(root: Path) -> dict[str, Any] | None:
    """Revision of the checkout at `root`, and whether its sources differ from it."""
    if not (root / ".git").exists():
        return None
    try:
        revision, changes = (
            subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
            ).stdout
            for arguments in (
                ("rev-parse", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", *_SOURCES),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"revision": revision.strip(), "is_dirty": bool(changes)}
