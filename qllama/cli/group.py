"""The command group: finds commands on demand and turns errors into exit codes.

The one place where an exception becomes a line on stderr. Knows the commands'
names, not what they do.
"""

from __future__ import annotations

import difflib
import importlib
import io
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from qllama.cli.options import Diagnostics
from qllama.cli.progress import notice
from qllama.cli.sections import write_sections
from qllama.errors import QllamaError

__all__ = ["cli", "main", "report_error"]

# As `qllama --help` lists them; each lives in the module of its name.
_HEADINGS = {
    "Daily use": ("chat", "generate", "pull", "list", "show", "rm"),
    "Models": ("convert", "calibrate", "inspect", "verify", "tokenize", "embed"),
    "Measuring": ("bench", "perplexity", "warmup"),
}
COMMANDS = tuple(name for names in _HEADINGS.values() for name in names)
# What they are called in other programs.
_ELSEWHERE = {
    "run": "chat",
    "complete": "generate",
    "ls": "list",
    "info": "show",
    "delete": "rm",
    "remove": "rm",
    "download": "pull",
    "get": "pull",
    "quantize": "convert",
    "ppl": "perplexity",
    "imatrix": "calibrate",
    "embedding": "embed",
}

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class CommandGroup(click.Group):
    """A click group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in help order; `ctx` is not needed for it."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command `cmd_name`; None when `ctx` has no such command."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"qllama.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with, in `ctx`; a wrong one brings the nearest."""
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            meant = _ELSEWHERE.get(name) or (near[0] if near else None)
            hint = f" Did you mean 'qllama {meant}'?" if meant else ""
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands into the `formatter` of a help page; `ctx` is the group's."""
        room = formatter.width - 6 - max(map(len, COMMANDS))
        commands = {name: self.get_command(ctx, name) for name in COMMANDS}
        records = {
            name: (name, command.get_short_help_str(room))
            for name, command in commands.items()
            if command is not None
        }
        write_sections(formatter, "Commands", _HEADINGS, records)

    def main(  # type: ignore[override]  # it never returns: every way out is an exit code
        self, args: Sequence[str] | None = None, prog_name: str | None = "qllama", **extra: Any
    ) -> NoReturn:
        """Run the command line `args` and exit.

        Parameters
        ----------
        args : sequence of str, optional
            Default `sys.argv[1:]`.
        prog_name : str
            The name that usage lines show.
        extra
            Passed to `click.Group.main`.

        Raises
        ------
        SystemExit
            0 done, 1 error or stdout's reader gone, 2 wrong usage, 130 interrupted.
        """
        diagnostics = Diagnostics()
        extra |= {"standalone_mode": False, "obj": diagnostics}
        _never_fail_on_unencodable_output()
        try:
            code = super().main(args, prog_name or "qllama", **extra)
        except Exception as error:
            code = report_error(error, diagnostics)
        sys.exit(code if isinstance(code, int) else 0)


def report_error(error: Exception, diagnostics: Diagnostics | None) -> int:
    """Print the one line on stderr that tells of an error, and return the exit code.

    Parameters
    ----------
    error : Exception
        The one that is being handled.
    diagnostics : Diagnostics or None
        Whether its traceback is wanted too.
    """
    if diagnostics is not None and diagnostics.debug:
        traceback.print_exc()
    message, code = _describe(error)
    notice(f"qllama: error: {message}")
    return code


def _describe(error: Exception) -> tuple[str, int]:
    """Return the one line that tells of `error`, and the exit code."""
    if isinstance(error, click.Abort):
        return "interrupted", EXIT_INTERRUPTED
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "qllama"
        return f"{_one_line(error.format_message())} Try '{path} --help'.", EXIT_USAGE
    if isinstance(error, click.ClickException):
        return _one_line(error.format_message()), EXIT_ERROR
    # A ValueError names an option that only the model could judge, as a token id can be.
    if isinstance(error, (QllamaError, ValueError)):
        return _one_line(str(error)), EXIT_ERROR
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{error.filename}: {reason}" if error.filename else reason, EXIT_ERROR
    return (
        f"internal error: {type(error).__name__}: {_one_line(str(error))}; "
        "run again with --debug and report it",
        EXIT_ERROR,
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _never_fail_on_unencodable_output() -> None:
    # A model may say what the terminal's encoding cannot express; a "?" beats a crash.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@click.group(
    cls=CommandGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  qllama chat
  qllama chat -p "What is the capital of France?"
""",
)
@click.version_option(package_name="qllama", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run Llama-family language models on ordinary CPUs.

    MODEL is a .qlm file, a checkpoint, a name that `qllama pull` knows or `qllama list`
    shows, or org/name on the Hugging Face hub. Without MODEL, commands use smollm2-135m
    and fetch it on first use.

    Answers go to stdout, progress and errors to stderr. The exit code is 0 when all is
    done, 1 after an error (told in one line) or when the reader of stdout has left, 2
    for wrong usage and 130 after Ctrl-C.

    QLLAMA_CACHE_DIR names the directory for models and compiled kernels, HF_TOKEN and
    HF_ENDPOINT are the Hugging Face hub's, and NO_COLOR leaves colours out. Each command
    explains itself: qllama COMMAND --help.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> NoReturn:
    """Console entry point: run `sys.argv` and exit."""
    cli.main()
