"""Where a measurement was taken."""

from __future__ import annotations

import json
import subprocess

import numba

from qllama import __version__
from qllama.bench import environment as environment_module
from qllama.bench.environment import environment


def test_environment_names_machine_and_versions():
    here = environment()
    assert json.loads(json.dumps(here)) == here
    assert here["qllama"] == __version__
    assert here["numba"] == numba.__version__
    assert here["cpu"]
    assert here["memory_bytes"] > 2**20


def test_environment_git_state_tells_revision_and_changes(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    state = environment_module._git_state
    assert state(tmp_path) is None
    git("init", "-q")
    assert state(tmp_path) is None  # no commit yet
    for directory in ("qllama", "docs"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "file").write_text("one")
    git("add", ".")
    git("commit", "-qm", "first")
    revision = git("rev-parse", "HEAD")
    assert state(tmp_path) == {"revision": revision, "is_dirty": False}
    installed = tmp_path / "venv"
    installed.mkdir()
    assert state(installed) is None  # inside somebody else's checkout
    (tmp_path / "docs" / "file").write_text("two")  # as a benchmark's results
    assert state(tmp_path) == {"revision": revision, "is_dirty": False}
    (tmp_path / "qllama" / "file").write_text("two")
    assert state(tmp_path) == {"revision": revision, "is_dirty": True}


def test_environment_without_git_has_no_revision(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert environment_module._git_state(tmp_path) is None


def test_environment_cpu_name_comes_from_where_linux_keeps_it(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2: GHz\nmodel name\t: other\n")
    monkeypatch.setattr(environment_module, "_CPU_INFO", info)
    assert environment()["cpu"] == "Some CPU @ 2: GHz"
    monkeypatch.setattr(environment_module, "_CPU_INFO", tmp_path / "none")
    assert environment()["cpu"]
