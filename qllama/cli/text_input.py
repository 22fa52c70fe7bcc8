"""Text that a command reads from stdin or a file, always as UTF-8."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["read_file", "read_stdin"]


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.ClickException(
            f"{where}: expected UTF-8 text, found byte 0x{data[error.start]:02x} "
            f"at offset {error.start}; convert it first"
        ) from error


def read_stdin() -> str:
    """Return all of stdin.

    Raises
    ------
    click.ClickException
        When it is closed, or not UTF-8.
    """
    if sys.stdin is None:
        raise click.ClickException(
            "stdin: expected text, found it closed; give the text on the command line or pipe it in"
        )
    return _decode(sys.stdin.buffer.read(), "stdin")


def read_file(path: Path) -> str:
    """Return all of the file at `path`.

    Raises
    ------
    OSError
        When it cannot be read.
    click.ClickException
        When it is not UTF-8.
    """
    return _decode(path.read_bytes(), str(path))
