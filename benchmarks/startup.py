"""From a fresh process to the first token, and the memory it takes; see `--help`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from harness.document import new_document, write
from harness.options import output_option
from harness.program import LAUNCH, OPEN_MODEL, QLLAMA, named_command, output_of
from harness.start_rows import startup_table
from qllama.kernels.cores import default_n_threads

_Samples = dict[str, list[dict[str, Any]]]


@click.command(
    epilog="Example: python benchmarks/startup.py model.qlm --rival "
    "'llama.cpp=llama.cpp/bin/llama-completion -no-cnv --no-display-prompt -m model.gguf'"
)
@click.argument(
    "models",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    nargs=-1,
    metavar="MODEL...",
)
@click.option(
    "--rival",
    "rivals",
    multiple=True,
    metavar="NAME=COMMAND",
    callback=lambda ctx, param, values: [named_command(value) for value in values],
    help="A command that generates; -p, -n 1, -t and -c are added. May be given again.",
)
@click.option("-p", "--prompt", default="Once upon a time", show_default=True)
@click.option(
    "-c",
    "--ctx-size",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    metavar="N",
    help="Context window in tokens.",
)
@click.option(
    "-t",
    "--threads",
    type=click.IntRange(min=1),
    default=default_n_threads(),
    show_default=True,
    metavar="N",
)
@click.option("-r", "--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--cold", is_flag=True, help="Also start with MODEL evicted from the page cache (Linux)."
)
@output_option("startup.json")
def main(
    models: tuple[Path, ...],
    rivals: list[tuple[str, list[str]]],
    prompt: str,
    ctx_size: int,
    threads: int,
    rounds: int,
    cold: bool,
    output: Path,
) -> None:
    """Time fresh processes that load a MODEL and generate one token, in turns.

    "First token" is the time to the first byte of output, or to the end of a process
    that ends without any; "peak RSS" counts the pages of mapped files too. The first
    round is not counted: it fills the page cache and the cache of compiled kernels.
    "open" is the time to open and check the model file in a process that is ready.
    """
    words = ["-p", prompt, "-n", "1", "-t", str(threads), "-c", str(ctx_size), "--temp", "0"]
    commands: list[tuple[str, Sequence[str]]] = []
    files: dict[str, Path] = {}
    for model in models:
        generate = [*QLLAMA, "generate", str(model), *words]
        commands.append((f"qllama {model.stem}", generate))
        if cold:
            commands.append((f"qllama {model.stem}, cold", generate))
            files[f"qllama {model.stem}, cold"] = model
    commands += [(name, [*command, *words]) for name, command in rivals]
    names = [name for name, _ in commands]
    if not names:
        raise click.UsageError("Nothing to start: give a MODEL or a --rival.")
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"two starts are called {name!r}")
    opens = {f"qllama {model.stem}": [_open(model) for _ in range(rounds)] for model in models}
    samples: _Samples = {name: [] for name in names}
    settings = {"prompt": prompt, "ctx_size": ctx_size, "threads": threads, "rounds": rounds}
    for number in range(rounds + 1):
        for name, command in commands:
            click.echo(f"round {number}: {name}", err=True)
            if name in files:
                _evict(files[name])
            sample = _launch(command)
            if number:
                samples[name].append(sample)
        if number:
            results = {"starts": samples, "open_seconds": opens, "is_complete": number == rounds}
            write(new_document("startup", settings, results), output)
    click.echo(startup_table(samples, opens))


def _launch(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run([*LAUNCH, *command], capture_output=True, text=True, check=False)
    last = (done.stderr.strip() or "no message").splitlines()[-1]
    if done.returncode:
        raise click.ClickException(last)
    sample: dict[str, Any] = json.loads(done.stdout)
    if sample.pop("exit_code"):
        raise click.ClickException(f"{shlex.join(command)}: {last}")
    return sample


def _open(model: Path) -> float:
    return float(output_of([*OPEN_MODEL, str(model)]))


def _evict(path: Path) -> None:
    """Have the system drop the file's pages; others that map it may keep them."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
