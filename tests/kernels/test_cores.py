"""The default number of threads: affinity, hyper-threads and control groups, from files."""

from __future__ import annotations

import os

import psutil
import pytest

from qllama import control_groups
from qllama.kernels import cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 4 cores with 2 hyper-threads each, in no control group."""
    topology, groups, own = tmp_path / "cpu", tmp_path / "cgroup", tmp_path / "own"
    monkeypatch.setattr(cores, "_CPU_TOPOLOGY", topology)
    monkeypatch.setattr(control_groups, "_ROOT", groups)
    monkeypatch.setattr(control_groups, "_OWN", own)
    for cpu in range(8):
        directory = topology / f"cpu{cpu}/topology"
        directory.mkdir(parents=True)
        (directory / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    groups.mkdir()
    allow(monkeypatch, range(8))
    return tmp_path


def allow(monkeypatch, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(cpus), raising=False)


def put_in(machine, own, files):
    """Write /proc/self/cgroup and files below the control groups' root."""
    (machine / "own").write_text(own)
    for name, text in files.items():
        path = machine / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [(range(8), 4), ([0, 4], 1), ([0, 1, 4], 2), ([3], 1), ([0, 1, 2, 7], 4)],
)
def test_cores_hyper_threads_of_one_core_count_once(machine, monkeypatch, allowed, expected):
    allow(monkeypatch, allowed)
    assert cores.default_n_threads() == expected


def test_cores_unknown_topology_counts_every_allowed_cpu(machine, monkeypatch):
    allow(monkeypatch, [2, 3, 99])
    assert cores.default_n_threads() == 3


@pytest.mark.parametrize(("physical", "logical", "expected"), [(6, 12, 6), (None, 12, 12)])
def test_cores_without_affinity_asks_psutil(machine, monkeypatch, physical, logical, expected):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(os, "cpu_count", lambda: logical)
    assert cores.default_n_threads() == expected


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 4),
        ("100000 100000", 1),
        ("250000 100000", 2),
        ("399999 100000", 3),
        ("50000 100000", 1),
        ("1000000 100000", 4),
        ("30000 10000", 3),
        ("", 4),
        ("3", 4),
    ],
)
def test_cores_cgroup_2_quota_is_rounded_down(machine, quota, expected):
    put_in(machine, "0::/user/app\n", {"user/app/cpu.max": quota})
    assert cores.default_n_threads() == expected


def test_cores_cgroup_2_least_quota_of_all_ancestors_counts(machine):
    files = {"a/b/c/cpu.max": "max 100000", "a/b/cpu.max": "300000 100000"}
    put_in(machine, "0::/a/b/c\n", files)
    assert cores.default_n_threads() == 3
    put_in(machine, "0::/a/b/c\n", {"a/cpu.max": "200000 100000"})
    assert cores.default_n_threads() == 2


def test_cores_cgroup_2_namespace_root_is_read(machine):
    put_in(machine, "0::/\n", {"cpu.max": "200000 100000"})
    assert cores.default_n_threads() == 2


def test_cores_cgroup_2_path_outside_the_namespace_ends_at_the_root(machine):
    put_in(machine, "0::/../../other\n", {"cpu.max": "200000 100000"})
    assert cores.default_n_threads() == 2


CGROUP_1 = "12:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n"


@pytest.mark.parametrize(
    ("quota", "period", "expected"), [("-1", "100000", 4), ("250000", "100000", 2), ("5", "0", 4)]
)
def test_cores_cgroup_1_quota_is_rounded_down(machine, quota, period, expected):
    group = "cpu/docker/x"
    files = {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": period}
    put_in(machine, CGROUP_1, files)
    assert cores.default_n_threads() == expected


def test_cores_cgroup_1_host_path_inside_a_container_reads_its_root(machine):
    files = {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}
    put_in(machine, CGROUP_1, files)
    assert cores.default_n_threads() == 2


def test_cores_cgroup_1_other_controllers_do_not_count(machine):
    files = {"memory/docker/x/cpu.cfs_quota_us": "1", "memory/docker/x/cpu.cfs_period_us": "1"}
    put_in(machine, CGROUP_1, files)
    assert cores.default_n_threads() == 4


def test_cores_of_this_machine_are_at_least_one():
    assert 1 <= cores.default_n_threads() <= (os.cpu_count() or 1)
