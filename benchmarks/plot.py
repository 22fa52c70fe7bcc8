"""Pictures of the documents that the other scripts write; see `--help`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.comparison import Comparison, Side
from harness.document import comparisons_in, read
from harness.kernel_rows import Row
from harness.quality_rows import QualityRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _LIMIT = "#1f6f8b", "#333333"
_RIVALS = ("#d98c3f", "#8a8f98", "#b5651d", "#c9b79c")
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "font.size": 10,
    # The same document makes the same file.
    "svg.hashsalt": "qllama",
    "svg.fonttype": "none",
}


@click.command(epilog="Example: python benchmarks/plot.py side_by_side.json scaling.json")
@click.argument(
    "documents",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    nargs=-1,
    required=True,
    metavar="DOCUMENT...",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="docs/pictures",
    show_default=True,
    metavar="DIR",
)
def main(documents: tuple[Path, ...], output: Path) -> None:
    """Draw what each DOCUMENT has, as SVG files in DIR.

    Documents are those of side_by_side.py, scaling.py, kernels.py and quality.py. Needs matplotlib:
    pip install -e '.[plots]'.
    """
    output.mkdir(parents=True, exist_ok=True)
    for path in documents:
        document = read(path)
        pictures = PICTURES.get(document["benchmark"])
        if pictures is None:
            raise click.ClickException(
                f"{path}: expected a document of {', '.join(PICTURES)}, "
                f"found {document['benchmark']}"
            )
        for name, draw in pictures.items():
            _save(output / f"{name or path.stem}.svg", draw, document)


def decode_bars(axes: Axes, document: dict[str, Any]) -> None:
    """Decode speed of every model, and the speed at which the weights could be read."""
    chosen = [c for c in comparisons_in(document) if not c.test.n_prompt]
    _bars(axes, chosen, "Generating, tokens/s", limits=[_read_limit(c.ours) for c in chosen])


def prefill_bars(axes: Axes, document: dict[str, Any]) -> None:
    """Prefill speed of every model."""
    chosen = [c for c in comparisons_in(document) if c.test.n_prompt]
    _bars(axes, chosen, "Reading a prompt, tokens/s", limits=[])


def depth_lines(axes: Axes, document: dict[str, Any]) -> None:
    """Decode speed against the tokens already held."""
    most = max(c.n_threads for c in comparisons_in(document))
    chosen = [c for c in _decodes(document) if c.n_threads == most and c.test.n_parallel == 1]
    _lines(axes, chosen, lambda c: c.test.depth, "tokens held before", "Generating, tokens/s")


def batch_lines(axes: Axes, document: dict[str, Any]) -> None:
    """Decode speed of all sequences against their number."""
    most = max(c.n_threads for c in comparisons_in(document))
    chosen = [c for c in _decodes(document) if c.n_threads == most and not c.test.depth]
    title = "Sequences decoded together, tokens/s of all"
    _lines(axes, chosen, lambda c: c.test.n_parallel, "sequences", title)


def thread_lines(axes: Axes, document: dict[str, Any]) -> None:
    """Decode speed against threads."""
    chosen = [c for c in _decodes(document) if not c.test.depth and c.test.n_parallel == 1]
    _lines(axes, chosen, lambda c: c.n_threads, "threads", "Generating, tokens/s")


def kernel_bars(axes: Axes, document: dict[str, Any]) -> None:
    """What each matrix kernel reaches of its limit."""
    rows = [Row(**entry) for entry in document["kernels"]]
    shares = [100 * statistics.median(row.shares) for row in rows]
    colors = {
        "GB/s": (_OURS, "of reading memory"),
        "GOP/s": (_RIVALS[0], "of the dot product peak"),
    }
    for unit, (color, label) in colors.items():
        places = [place for place, row in enumerate(rows) if row.unit == unit]
        axes.barh(places, [shares[i] for i in places], color=color, height=0.7, label=label)
    for place, row in enumerate(rows):
        _label_bar(
            axes, f"{_figure(statistics.median(row.values))} {row.unit}", shares[place], place
        )
    axes.axvline(100, color=_LIMIT, linewidth=1)
    names = [f"{row.model} {row.work}, {row.n_tokens} tok." for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_title("Kernels, % of their limit in the same run")
    axes.legend(loc="upper center", bbox_to_anchor=(0.3, -0.06), ncols=2, fontsize=9)
    _fit_height(axes, len(rows))


def quality_points(axes: Axes, document: dict[str, Any]) -> None:
    """Divergence from the original against the size of the file."""
    rows = [QualityRow(**entry) for entry in document["rows"]]
    for engine, color in {"qllama": _OURS, "llama.cpp": _RIVALS[0]}.items():
        points = sorted(
            (row.n_bytes / 1e6, row.kld, row.type) for row in rows if row.engine == engine
        )
        axes.plot(
            [x for x, _, _ in points], [y for _, y, _ in points], "o", color=color, label=engine
        )
        for number, (x, y, name) in enumerate(points):
            # Above and below in turns: files of nearly one size stand side by side.
            lift = 4 if number % 2 else -11
            axes.annotate(name, (x, y), (5, lift), textcoords="offset points", fontsize=8)
    axes.set_yscale("log")
    axes.set_xlabel("file, MB")
    axes.set_title("Mean KL divergence from the original: lower is nearer")
    axes.legend()


Draw = Callable[["Axes", dict[str, Any]], None]

PICTURES: dict[str, dict[str, Draw]] = {
    "side_by_side": {"decode": decode_bars, "prefill": prefill_bars},
    "scaling": {"depth": depth_lines, "batch": batch_lines, "threads": thread_lines},
    "kernels": {"kernels": kernel_bars},
    # A document a model: the picture is called as it is.
    "quality": {"": quality_points},
}


def _decodes(document: dict[str, Any]) -> list[Comparison]:
    return [c for c in comparisons_in(document) if not c.test.n_prompt]


def _median(side: Side) -> float:
    return statistics.median(side.samples)


def _read_limit(side: Side) -> float:
    """Tokens a second that reading at the limit of the same run would allow."""
    return _median(side) / side.detail("read_share")


def _engines(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Name and color of every engine."""
    rivals = dict.fromkeys(side.engine for c in comparisons for side in c.rivals)
    # Past our own colors those of matplotlib, which begin again after some.
    colors = [*_RIVALS, *(f"C{n}" for n in range(len(rivals)))]
    return {"qllama": _OURS, **dict(zip(rivals, colors, strict=False))}


def _side(comparison: Comparison, engine: str) -> Side | None:
    sides = {side.engine: side for side in [comparison.ours, *comparison.rivals]}
    return sides.get(engine)


def _bars(
    axes: Axes, comparisons: Sequence[Comparison], title: str, limits: Sequence[float]
) -> None:
    """Draw a group of bars a comparison, one an engine, each against the group's best.

    Models of all sizes share the axis, so bars are in % of qllama's speed and carry
    their own tokens/s.
    """
    engines = _engines(comparisons)
    height = 0.8 / len(engines)
    for number, (engine, color) in enumerate(engines.items()):
        for place, comparison in enumerate(comparisons):
            side = _side(comparison, engine)
            if side is None:
                continue
            value = 100 * _median(side) / _median(comparison.ours)
            y = place + (number - (len(engines) - 1) / 2) * height
            axes.barh(y, value, height * 0.92, color=color, label=engine if not place else None)
            _label_bar(axes, _figure(_median(side)), value, y)
    for place, (comparison, limit) in enumerate(zip(comparisons, limits, strict=False)):
        x = 100 * limit / _median(comparison.ours)
        label = None if place else "memory's limit in the same run"
        axes.plot([x, x], [place - 0.45, place + 0.45], color=_LIMIT, linewidth=1.5, label=label)
    axes.set_yticks(range(len(comparisons)), [f"{c.model}\n{c.test.name}" for c in comparisons])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("% of qllama; figures are tokens/s")
    axes.set_title(title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=4, fontsize=9)
    _fit_height(axes, len(engines) * len(comparisons))


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _label_bar(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), (3, 0), textcoords="offset points", va="center", fontsize=8)


def _fit_height(axes: Axes, n_bars: int) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_figheight(max(figure.get_figheight(), 1.5 + 0.25 * n_bars))


def _lines(
    axes: Axes,
    comparisons: Sequence[Comparison],
    x_of: Callable[[Comparison], int],
    x_title: str,
    title: str,
) -> None:
    """Draw a line an engine: medians, with the extremes of all rounds as bars."""
    for engine, color in _engines(comparisons).items():
        points = sorted(
            (x_of(comparison), side.samples)
            for comparison in comparisons
            if (side := _side(comparison, engine)) is not None
        )
        medians = [statistics.median(samples) for _, samples in points]
        below = [m - min(samples) for m, (_, samples) in zip(medians, points, strict=True)]
        above = [max(samples) - m for m, (_, samples) in zip(medians, points, strict=True)]
        axes.errorbar(
            [x for x, _ in points],
            medians,
            yerr=[below, above],
            color=color,
            label=engine,
            marker="o",
            markersize=4,
            capsize=2,
        )
    axes.set_xticks(sorted({x_of(comparison) for comparison in comparisons}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_title)
    axes.set_title(title)
    axes.legend()


def _save(path: Path, draw: Draw, document: dict[str, Any]) -> None:
    try:
        from matplotlib import pyplot, rc_context
    except ImportError as error:
        raise click.ClickException(
            "matplotlib is not installed: pip install -e '.[plots]'"
        ) from error
    with rc_context(_STYLE):
        figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
        draw(axes, document)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    click.echo(path)


if __name__ == "__main__":
    main()
