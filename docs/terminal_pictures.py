"""Draws the pictures of terminals in a Markdown file; see `--help`.

A comment above a picture says what is typed. It is played in a real terminal (tmux), one
session after the other in one directory, and what was to be seen becomes the picture.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

__all__ = ["Picture", "pictures_of"]

_COMMENT = re.compile(r"<!-- terminal: (?P<name>\S+)\n(?P<typed>.*?)-->", re.DOTALL)
# A line `^C WORD` presses Ctrl-C once WORD is in the answer to the line before.
_INTERRUPT = re.compile(r"\^C (?P<word>.+)")
_PROMPTS = ("$ ", ">>> ", "... ")
_COLUMNS, _ROWS = 84, 200
_POLL_SECONDS, _QUIET_SECONDS = 0.1, 0.7

# As rich's, but for the font, which it would fetch from elsewhere.
_SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


@dataclass(frozen=True)
class Picture:
    """A file, and what is typed for it, one entry a line."""

    name: str
    typed: tuple[str, ...]


def pictures_of(markdown: str) -> list[Picture]:
    """Return the pictures that the comments of a file describe."""
    return [
        Picture(match["name"], tuple(match["typed"].strip("\n").splitlines()))
        for match in _COMMENT.finditer(markdown)
    ]


class Terminal:
    """A shell in a terminal of its own, that tmux draws.

    Parameters
    ----------
    home : Path
        Where it begins.
    patience : float
        Seconds that one line may take.
    """

    def __init__(self, home: Path, patience: float) -> None:
        self._patience = patience
        # A server of its own: the one before may still be going.
        self._tmux = ["tmux", "-L", f"pictures-{secrets.token_hex(4)}", "-f", os.devnull]
        environment = {
            **{k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "QLLAMA_CACHE_DIR")},
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "XDG_DATA_HOME": str(home / ".local" / "share"),
            "PS1": "$ ",
            "TERM": "xterm-256color",
        }
        size = ("-x", str(_COLUMNS), "-y", str(_ROWS))
        new = (*self._tmux, "new-session", "-d", *size, "bash", "--norc", "--noprofile")
        subprocess.run(new, env=environment, cwd=home, check=True)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self._ask("kill-server")

    def play(self, typed: Sequence[str]) -> str:
        """Type lines, each once the one before is done, and return the screen in colour."""
        self._wait_for_prompt()
        for line, following in zip(typed, (*typed[1:], ""), strict=True):
            interrupt = _INTERRUPT.fullmatch(following)
            if _INTERRUPT.fullmatch(line):
                continue
            if interrupt is None:
                self._type(line)
            else:
                word = interrupt["word"]
                seen = self._screen().count(word) + line.count(word)
                self._type(line)
                self._wait(lambda w=word, n=seen: self._screen().count(w) > n)
                self._ask("send-keys", "C-c")
            self._wait_for_prompt()
        return self._screen("-e")

    def _type(self, line: str) -> None:
        self._ask("send-keys", "-l", "--", line)
        self._ask("send-keys", "Enter")

    def _ask(self, *arguments: str) -> str:
        asked = subprocess.run(
            [*self._tmux, *arguments], capture_output=True, text=True, check=True
        )
        return asked.stdout

    def _screen(self, *options: str) -> str:
        return self._ask("capture-pane", "-p", *options)

    def _before_cursor(self) -> str:
        """What stands on the cursor's line, up to it."""
        x, y = map(int, self._ask("display-message", "-p", "#{cursor_x} #{cursor_y}").split())
        return self._screen().split("\n")[y][:x].ljust(x)

    def _wait_for_prompt(self) -> None:
        """Wait until the cursor stands behind a prompt and nothing has moved for a while."""
        since, before = time.monotonic(), ""

        def is_quiet() -> bool:
            nonlocal since, before
            screen = self._screen()
            if screen != before or self._before_cursor() not in _PROMPTS:
                since, before = time.monotonic(), screen
            return time.monotonic() - since > _QUIET_SECONDS

        self._wait(is_quiet)

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._patience
        while not done():
            if time.monotonic() > deadline:
                raise click.ClickException(f"nothing came of it:\n{self._screen().rstrip()}")
            time.sleep(_POLL_SECONDS)


def as_svg(screen: str, name: str) -> str:
    """Return what a terminal showed, without the prompt that waits below, as a picture."""
    text = Text.from_ansi(screen.rstrip("\n"))
    lines = list(text.split("\n"))
    while lines and f"{lines[-1].plain.strip()} " in (" ", *_PROMPTS):
        lines.pop()
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(line, no_wrap=True, overflow="crop", highlight=False)
    return console.export_svg(title="qllama", code_format=_SVG, unique_id=Path(name).stem)


@click.command(epilog="Example: python docs/terminal_pictures.py docs/tutorial.md")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Home directory to begin in, and to leave.  [default: a new one, removed afterwards]",
)
@click.option(
    "--patience",
    type=float,
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Time that one line may take; the first compiles the kernels.",
)
def main(file: Path, home: Path | None, patience: float) -> None:
    """Play the sessions that the comments of FILE describe, and draw its pictures anew.

    In a new home directory the first fetches the model, through your pip configuration.
    Needs tmux, and `qllama` on the PATH.
    """
    with tempfile.TemporaryDirectory() as temporary:
        home = home or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        for picture in pictures_of(file.read_text(encoding="utf-8")):
            with Terminal(home, patience) as terminal:
                screen = terminal.play(picture.typed)
            path = file.parent / picture.name
            path.write_text(as_svg(screen, picture.name), encoding="utf-8")
            click.echo(path)


if __name__ == "__main__":
    main()
