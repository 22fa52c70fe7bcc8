"""Everything that docs/benchmarks.md shows, measured in one go; see `--help`."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import click

from harness.engines import LlamaBench

_HERE = Path(__file__).parent
_ROOT = _HERE.parent
_DRAWN = ("side_by_side", "scaling", "kernels")
_COPIED = ("1B Q4_0", "1B Q8_0", "1B q4 : Q4_K_M", "3B Q4_0", "3B Q8_0")
_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True)


@click.command(
    epilog="Example: python benchmarks/reproduce.py models "
    "--rival llama.cpp=llama.cpp/bin/llama-bench"
)
@click.argument("models", type=_DIRECTORY)
@click.option(
    "--rival",
    "rivals",
    multiple=True,
    required=True,
    metavar="NAME=COMMAND",
    help="As of side_by_side.py. The first is measured on everything, and by the "
    "llama-completion beside it in start-up; others beside every model, once more.",
)
@click.option(
    "--ik",
    metavar="COMMAND",
    help="llama-bench of ik_llama.cpp, measured on the 1B Q4_0 model.",
)
@click.option(
    "--ctranslate2",
    nargs=2,
    metavar="PYTHON MODEL",
    help="An interpreter that has CTranslate2, and the model.bin of a 1B model converted to "
    "int8, measured beside 1B Q8_0.",
)
@click.option(
    "--only",
    "chosen",
    multiple=True,
    metavar="STEP",
    help="Measure only this step, as kernels. May be given again.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Of side_by_side.py; scaling.py takes one.",
)
def main(
    models: Path,
    rivals: tuple[str, ...],
    ik: str | None,
    ctranslate2: tuple[str, str] | None,
    chosen: tuple[str, ...],
    rounds: int,
) -> None:
    """Measure kernels, speed beside rivals, scaling and start-up with the models in MODELS.

    They are those of make_models.py, and SmolLM2-135M as smollm2-q4.qlm and
    SmolLM2-135M-Instruct.Q4_1.gguf. Documents go to docs/results, pictures to
    docs/pictures, tables into docs/benchmarks.md. Leave the machine alone meanwhile.

    A document is written after each model, so that an error or Ctrl-C loses little; the
    last line then says how to measure the rest.
    """
    first = rivals[0]
    turns = ["--variant", "-fa 1", "--variant", "-fa 0", "--rounds", str(rounds)]
    steps: dict[str, list[str]] = {
        "kernels": [f"{models}/1b-{name}.qlm" for name in ("q4_0", "q8_0")],
        "side_by_side": ["--plan", f"{models}", "--rival", first, *turns],
        # Weights in memory of their own, as the rivals that repack have them.
        "copied": [
            *("--plan", f"{models}", *_repeated("--model", _COPIED), "--rival", first, *turns),
            *("--qllama-arguments", "--no-mmap"),
        ],
        "scaling": [
            f"{models}/1b-q4_0.qlm",
            f"{models}/1b-Q4_0.gguf",
            *("--rival", first, *turns[:4], "--rounds", "1"),
        ],
        "startup": _startup(models, first),
    }
    if rivals[1:]:
        steps["others"] = ["--plan", f"{models}", *_repeated("--rival", rivals[1:]), *turns]
    if ik:
        old = shlex.join([sys.executable, str(_HERE / "rival_ik_llama.py"), *shlex.split(ik)])
        rows = ["--plan", f"{models}", "--model", "1B Q4_0"]
        steps["ik"] = [*rows, "--rival", f"ik_llama.cpp={old}", *turns]
    if ctranslate2:
        python, model = ctranslate2
        command = shlex.join([python, str(_HERE / "rival_ctranslate2.py")])
        steps["ctranslate2"] = [
            *("--pair", f"{models}/1b-q8_0.qlm={model}", "--rival", f"CTranslate2={command}"),
            *turns[4:],
        ]
    unknown = set(chosen) - set(steps)
    if unknown:
        raise click.UsageError(f"--only {unknown.pop()}: expected one of {', '.join(steps)}")
    left = list(dict.fromkeys(chosen or steps))
    try:
        for name in tuple(left):
            script = name if (_HERE / f"{name}.py").exists() else "side_by_side"
            output = _ROOT / "docs" / "results" / f"{name}.json"
            if _run(f"{script}.py", *steps[name], "-o", str(output)):
                left.remove(name)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
    documents = [_ROOT / "docs" / "results" / f"{name}.json" for name in _DRAWN]
    drawn = [str(path) for path in documents if path.exists()]
    is_drawn = _run("plot.py", *drawn, "-o", str(_ROOT / "docs" / "pictures"))
    is_filled = _run("fill_docs.py", str(_ROOT / "docs" / "benchmarks.md"))
    if left:
        rest = " ".join(f"--only {name}" for name in left)
        raise click.ClickException(f"not all was measured; the rest: {rest}")
    if not (is_drawn and is_filled):
        raise click.ClickException("pictures or tables are not those of the documents")


def _repeated(option: str, values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _startup(models: Path, rival: str) -> list[str]:
    command = LlamaBench.parse(rival)
    completion = Path(command.program).with_name("llama-completion")
    options = ("-no-cnv", "--no-display-prompt")
    pairs = {
        "SmolLM2 Q4_1": ("smollm2-q4.qlm", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        "1B Q4_0": ("1b-q4_0.qlm", "1b-Q4_0.gguf"),
        "3B Q4_0": ("3b-q4_0.qlm", "3b-Q4_0.gguf"),
    }
    words = [f"{models}/{ours}" for ours, _ in pairs.values()]
    for name, (_, theirs) in pairs.items():
        start = shlex.join([str(completion), *options, "-m", f"{models}/{theirs}"])
        words += ["--rival", f"{command.name} {name}={start}"]
    return words


def _run(script: str, *arguments: str) -> bool:
    """Run a script; returns whether it ended well."""
    start = time.monotonic()
    click.echo(f"== {script}", err=True)
    done = subprocess.run([sys.executable, str(_HERE / script), *arguments], check=False)
    click.echo(f"== {script}: {time.monotonic() - start:.0f} s", err=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
