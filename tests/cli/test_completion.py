"""The Tab key: click's scripts, and what they are given to choose from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(tmp_path) -> Path:
    """A directory with a `qllama` to run."""
    path = tmp_path / "bin" / "qllama"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from qllama.cli import main\nmain()\n"
    )
    path.chmod(0o755)
    return path


def ask(program: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, program],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def complete(program: Path, *words: str) -> list[str]:
    """What may stand in the place of the last of `words`."""
    answer = ask(
        program,
        _QLLAMA_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(words),
        COMP_CWORD=str(len(words) - 1),
    )
    return [line.partition(",")[2] for line in answer.splitlines() if line.startswith("plain,")]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_script_calls_qllama_for_its_choices(program, shell):
    script = ask(program, _QLLAMA_COMPLETE=f"{shell}_source")
    assert f"_QLLAMA_COMPLETE={shell}_complete" in script


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("qllama", "ver"), ["verify"]),
        (("qllama", "chat", "--top"), ["--top-k", "--top-p"]),
        (("qllama", "pull", "--type", "q8"), ["q8", "q8_0"]),
    ],
)
def test_completion_finds_commands_options_and_values(program, words, expected):
    assert complete(program, *words) == expected


def test_completion_of_a_model_is_a_name_or_a_file(program, isolated_home, tiny_qlm):
    models = isolated_home / "cache" / "models"
    models.mkdir()
    shutil.copy(tiny_qlm, models / "smol-tiny-q4.qlm")
    assert complete(program, "qllama", "chat", "smol") == ["smollm2-135m", "smol-tiny-q4"]
    assert complete(program, "qllama", "rm", "smol") == ["smol-tiny-q4"]
    answer = ask(
        program, _QLLAMA_COMPLETE="bash_complete", COMP_WORDS="qllama chat ./m", COMP_CWORD="2"
    )
    assert answer == "file,./m\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash_itself(program):
    """The script's function, called as bash does when the key is pressed."""
    script = (
        'eval "$(_QLLAMA_COMPLETE=bash_source qllama)" && complete -p qllama && '
        "COMP_WORDS=(qllama gen) COMP_CWORD=1 && _qllama_completion qllama && "
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "generate"
