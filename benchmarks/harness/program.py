"""The programs that scripts start, as the beginnings of their command lines."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

__all__ = ["LAUNCH", "OPEN_MODEL", "QLLAMA", "named_command", "output_of"]

_HERE = Path(__file__).parent
#: A subcommand of qllama follows.
QLLAMA = (sys.executable, str(_HERE / "run_qllama.py"))
#: The command to watch follows; alone and small, without the modules of a user's site.
LAUNCH = (sys.executable, "-I", "-S", str(_HERE / "launch.py"))
#: A model's file follows; prints the seconds to open it.
OPEN_MODEL = (sys.executable, str(_HERE / "open_model.py"))


def named_command(text: str) -> tuple[str, list[str]]:
    """Read `NAME=COMMAND`, the command as a shell would write it.

    Raises
    ------
    click.BadParameter
        It is something else.
    """
    name, _, command = text.partition("=")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.BadParameter(f"expected NAME=COMMAND, found {text!r}: {error}") from error
    if not (name and words):
        raise click.BadParameter(f"expected NAME=COMMAND, found {text!r}")
    return name, words


def output_of(command: Sequence[str]) -> str:
    """Stdout of a program that succeeds; what it says on stderr is shown only if it fails.

    Raises
    ------
    click.ClickException
        It does not start, or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise click.ClickException(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise click.ClickException(f"{shlex.join(command)}: {last}")
    return done.stdout
