"""Text that a command reads from stdin or a file, always as UTF-8.

Owns which of them a prompt comes from.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["read_file", "read_prompt", "read_stdin"]


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


def read_prompt(prompt: str | None, file: Path | None) -> str | None:
    """Return the text to answer, or None where there is none and stdin is a terminal.

    The line end that editors and `echo` leave at the end of a file or pipe does not belong
    to it, as in llama.cpp.

    Parameters
    ----------
    prompt : str or None
        `-p`: the text; `-` is stdin.
    file : Path or None
        `-f`: a file with it; `-` is stdin. With both, `prompt`, an empty line and the
        text of `file`. With neither, stdin unless that is a terminal.

    Raises
    ------
    OSError, click.ClickException
        As `read_file` and `read_stdin`; click.UsageError when both are stdin.
    """
    if prompt is None and file is None:
        return None if sys.stdin is not None and sys.stdin.isatty() else _line_end_off(read_stdin())
    parts = []
    if prompt is not None:
        parts.append(_line_end_off(read_stdin()) if prompt == "-" else prompt)
    if file is not None:
        from_stdin = str(file) == "-"
        if from_stdin and prompt == "-":
            raise click.UsageError("Both -p - and -f - read stdin: give one of them.")
        parts.append(_line_end_off(read_stdin() if from_stdin else read_file(file)))
    return "\n\n".join(parts)


def _line_end_off(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
