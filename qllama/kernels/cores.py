"""How many threads to compute with: physical cores that this process may really use."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from qllama.control_groups import own_control_groups, read_text

__all__ = ["default_n_threads"]

_CPU_TOPOLOGY = Path("/sys/devices/system/cpu")


def default_n_threads() -> int:
    """Physical cores within affinity and cgroup quota, rounded down; at least 1."""
    cores = _physical_cores()
    quota = _cgroup_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def _physical_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        siblings = {
            read_text(_CPU_TOPOLOGY / f"cpu{c}/topology/thread_siblings_list") for c in allowed
        }
        return len(allowed) if None in siblings else len(siblings)
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _cgroup_quota() -> float | None:
    """CPUs' worth of time that control groups grant, the least over all ancestors."""
    quotas = [_quota_of(*group) for group in own_control_groups("cpu")]
    granted = [quota for quota in quotas if quota is not None]
    return min(granted) if granted else None


def _quota_of(directory: Path, version_2: bool) -> float | None:
    if version_2:
        words = (read_text(directory / "cpu.max") or "max").split()
    else:
        words = [
            read_text(directory / name) or "-1"
            for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        ]
    if len(words) != 2 or words[0] in ("max", "-1") or int(words[1]) <= 0:
        return None
    return int(words[0]) / int(words[1])
