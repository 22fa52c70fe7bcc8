"""`docs/cli.md`, made of what every command and the session say of themselves.

Run `python -m qllama.cli.reference docs/cli.md` after a change of any help text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import click

from qllama.cli.group import COMMANDS, cli

if TYPE_CHECKING:
    from qllama.cli.repl.chat import Chat

__all__ = ["reference"]

# What click makes of a terminal of 80 columns or more.
_WIDTH = 78

_HEAD = """\
# Commands

What each command says with `--help`, and a session with `/?`. This page is made of them: run
`python -m qllama.cli.reference docs/cli.md` after a change.
"""

_COMPLETION = """\
## Completion in the shell

The Tab key completes commands, options, their values and the names of models once the shell
has been told how, by one of these lines, once:

```sh
# bash: for this user, in every new shell
mkdir -p ~/.local/share/bash-completion/completions
_QLLAMA_COMPLETE=bash_source qllama > ~/.local/share/bash-completion/completions/qllama
# zsh
echo 'eval "$(_QLLAMA_COMPLETE=zsh_source qllama)"' >> ~/.zshrc
# fish
_QLLAMA_COMPLETE=fish_source qllama > ~/.config/fish/completions/qllama.fish
```

The bash line needs the package `bash-completion`, which most systems have; without it, put
`eval "$(_QLLAMA_COMPLETE=bash_source qllama)"` into `~/.bashrc`.
"""


def reference() -> str:
    """Return the page, the same on every terminal."""
    return "\n".join([_HEAD, *_commands(), *_session(), _COMPLETION])


def _commands() -> Iterator[str]:
    group = click.Context(cli, info_name="qllama", terminal_width=_WIDTH, **cli.context_settings)
    yield _block("## qllama", cli.get_help(group))
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None
        ctx = click.Context(command, info_name=name, parent=group)
        yield _block(f"## qllama {name}", command.get_help(ctx))


def _session() -> Iterator[str]:
    from qllama.cli.repl.commands import obey

    said: list[str] = []
    chat = SimpleNamespace(screen=SimpleNamespace(say=said.append))
    yield "## In a session\n\nWhat `qllama chat` takes at its prompt.\n"
    for line in ("/?", "/? set", "/? show", "/? shortcuts"):
        said.clear()
        obey(cast("Chat", chat), line)
        yield _block(f"### {line}", "\n".join(said))


def _block(title: str, text: str) -> str:
    lines = (line.rstrip() for line in text.strip("\n").splitlines())
    return "\n".join([title, "", "```text", *lines, "```", ""])


def main() -> None:
    """Write the page to the file that the first argument names."""
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
