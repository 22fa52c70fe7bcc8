"""`qllama bench`: how fast a model runs here, and how fast this machine lets it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qllama.cli.bench_progress import BenchProgress
from qllama.cli.completion import complete_model
from qllama.cli.group import EXIT_INTERRUPTED
from qllama.cli.loading import compilation_progress, model_path
from qllama.cli.numbers import Numbers
from qllama.cli.options import debug_option
from qllama.cli.progress import ProgressReport, notice
from qllama.cli.runtime import cache_type_options, mmap_option

if TYPE_CHECKING:
    from qllama.bench.results import BenchModel, Results

__all__ = ["command"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _list_option(
    *flags: str, least: int, default: str | None, text: str
) -> Callable[[_Command], _Command]:
    """Make an option whose values, of all times it is given, are one tuple without repeats."""

    def parse(
        ctx: click.Context, param: click.Parameter, values: tuple[tuple[int, ...], ...]
    ) -> tuple[int, ...]:
        return tuple(dict.fromkeys(number for numbers in values for number in numbers))

    return click.option(
        *flags,
        type=Numbers(least),
        multiple=True,
        callback=parse,
        default=None if default is None else [default],
        show_default=default is not None,
        metavar="N,...",
        help=text,
    )


@click.command(
    "bench",
    short_help="Measure speed, and the machine's limits beside it.",
    epilog="Example: qllama bench model.qlm -p 512 -n 64 -d 0,2048 -t 1,2 -o json",
)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@click.option(
    "-m",
    "--model",
    "more_models",
    multiple=True,
    metavar="MODEL",
    help="One more MODEL. May be given again.  [default: smollm2-135m, fetched on first use]",
)
@_list_option(
    "-p", "--n-prompt", least=0, default="512", text="Tokens of the prompts to read; 0 is no test."
)
@_list_option(
    "-n", "--n-gen", least=0, default="128", text="Tokens to generate one by one; 0 is no test."
)
@click.option(
    "-pg",
    "pairs",
    type=Numbers(1, count=2),
    multiple=True,
    metavar="PP,TG",
    help="Read PP tokens, then generate TG, timed together. May be given again.",
)
@_list_option(
    "-d", "--n-depth", least=0, default="0", text="Tokens that the context holds before a test."
)
@_list_option(
    "-np",
    "--parallel",
    least=1,
    default="1",
    text="Sequences that generate together; t/s is of all of them.",
)
@_list_option(
    "-t",
    "--threads",
    least=1,
    default=None,
    text="Compute threads.  [default: the physical cores this process may use]",
)
@click.option(
    "-b",
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens evaluated together.  [default: as the other commands, or more for -np]",
)
@cache_type_options
@mmap_option
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Timed runs of each test.",
)
@click.option(
    "-o",
    "--output",
    "output_format",
    type=click.Choice(["md", "json", "csv"], case_sensitive=False),
    default="md",
    show_default=True,
    help="json and csv have the raw samples too.",
)
@debug_option
def command(
    models: tuple[str, ...],
    more_models: tuple[str, ...],
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    pairs: tuple[tuple[int, int], ...],
    n_depth: tuple[int, ...],
    parallel: tuple[int, ...],
    threads: tuple[int, ...],
    batch_size: int | None,
    kv_type: str,
    use_mmap: bool,
    repetitions: int,
    output_format: str,
) -> None:
    """Measure how fast each MODEL reads prompts (pp) and generates (tg), as llama-bench does.

    Columns and tests are llama-bench's: pp512, tg128, tg128 @ d2048 after 2048 tokens
    of context, pp512+tg128 of -pg; tg128 x8 are 8 sequences decoded together. Neither
    tokenizing nor sampling is measured. Every combination of the lists is a test; each
    begins with a run that is not timed.

    Between the runs the command measures what this machine can do at best with as
    many threads: GB/s of reading memory, which limits tg, and 10^9 operations/s of
    the byte dot products of its vector unit (dot4), which limit pp. The columns GB/s
    and GOP/s are what the test reached, and its share of that limit. A share may
    exceed 100%: a small model stays in caches, and a CPU with a matrix unit (AMX)
    multiplies faster than its vector unit.

    Ctrl-C or an error ends the run; what was measured until then is printed.
    """
    from qllama.bench.plan import BenchSettings, grid
    from qllama.bench.results import Results
    from qllama.bench.runner import prepare, run
    from qllama.kernels.cores import default_n_threads

    tests = grid(n_prompt, n_gen, pairs, n_depth, parallel)
    if not tests:
        raise click.UsageError("Nothing to measure: give -p, -n or -pg a number above 0.")
    together = max(test.n_parallel for test in tests)
    if batch_size is not None and together > batch_size:
        raise click.UsageError(
            f"-np {together} sequences do not fit a batch of -b {batch_size} tokens."
        )
    chosen = _named_models([*models, *more_models])
    settings = BenchSettings(
        threads or (default_n_threads(),), repetitions, batch_size, kv_type, use_mmap
    )
    with ProgressReport() as compiling:
        prepare(chosen, tests, settings, compilation_progress(compiling))
    n_rows = len(chosen) * len(settings.n_threads) * len(tests)
    results = Results()
    try:
        with BenchProgress(n_rows, repetitions) as progress:
            run(chosen, tests, settings, results, progress.report)
    except KeyboardInterrupt:
        _print(results, output_format)
        notice(f"qllama: interrupted: measured {len(results.rows)} of {n_rows} tests")
        click.get_current_context().exit(EXIT_INTERRUPTED)
    except Exception:
        if results.rows:
            _print(results, output_format)
            notice(f"qllama: measured {len(results.rows)} of {n_rows} tests before an error")
        raise
    _print(results, output_format)


def _named_models(models: Sequence[str]) -> list[BenchModel]:
    """Resolve what the user calls the models to files; each once, and with a name of its own."""
    from qllama.bench.results import BenchModel
    from qllama.cli.options import DEFAULT_WEIGHT_TYPE
    from qllama.hub.registry import DEFAULT_MODEL

    paths: dict[str, str] = {}
    for model in dict.fromkeys(models or [DEFAULT_MODEL]):
        path = model_path(model)
        name = model.rstrip("/").rpartition("/")[2].removesuffix(".qlm")
        if path != Path(os.path.expanduser(model)):  # noqa: PTH111  # "~nobody" is a name
            name = f"{name.removesuffix('.gguf')} {DEFAULT_WEIGHT_TYPE}"
        paths[model if name in paths else name] = str(path)
    return [BenchModel(name, path) for name, path in paths.items()]


def _print(results: Results, output_format: str) -> None:
    from qllama.bench import report

    document = report.as_document(results)
    if output_format == "json":
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    elif output_format == "csv":
        click.echo(report.as_csv(document), nl=False)
    else:
        click.echo(report.as_markdown(document), nl=False)
