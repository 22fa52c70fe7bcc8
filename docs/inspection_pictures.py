"""Draws the pictures of inspection.md: of what its blocks compute; see `--help`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HERE = Path(__file__).parent
_STYLE: dict[Any, Any] = {
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    # The same numbers make the same file.
    "svg.hashsalt": "qllama",
    "svg.fonttype": "none",
}

Names = dict[str, Any]


def computed(model: Path) -> Names:
    """Run the document's blocks, in order, and return their names."""
    names: Names = {"model_path": str(model)}
    text = (_HERE / "inspection.md").read_text(encoding="utf-8")
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block[1], names)
    return names


def cells(axes: Axes, values: Any, *, limit: float, colours: str, low: float = 0.0) -> None:
    """A coloured rectangle a value, rows from the top down."""
    mesh = axes.pcolormesh(values, cmap=colours, vmin=low, vmax=limit, linewidth=0)
    axes.figure.colorbar(mesh, ax=axes, shrink=0.8).outline.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)


def token_ticks(tokens: tuple[str, ...]) -> list[str]:
    """Tokens with their spaces to be seen."""
    return [token.replace(" ", "\N{OPEN BOX}") for token in tokens]


def attention(axes: Axes, names: Names) -> None:
    """Weights of the head that matters most."""
    trace = names["mover"]
    cells(axes, trace["layers.23.self_attn.weights"][4], limit=1.0, colours="Blues")
    places = np.arange(len(trace.tokens)) + 0.5
    axes.set_xticks(places, token_ticks(trace.tokens), rotation=30)
    axes.set_yticks(places, token_ticks(trace.tokens))
    axes.invert_yaxis()
    axes.set_title("Layer 23, head 4: where each token (row) looks")


def lens(axes: Axes, names: Names) -> None:
    """The likeliest tokens after each layer, coloured by their probability."""
    found = names["lens"]
    chances = found.probabilities[:, 0]
    cells(axes, chances, limit=1.0, colours="Blues")
    for row, column in np.ndindex(chances.shape):
        axes.text(
            column + 0.5,
            row + 0.5,
            token_ticks((found.tokens[row][0][column],))[0],
            ha="center",
            va="center",
            color="white" if chances[row, column] > 0.6 else "black",
        )
    labels = [name.removesuffix(".output") for name in found.names]
    axes.set_yticks(np.arange(len(labels)) + 0.5, labels)
    axes.set_xticks(np.arange(chances.shape[1]) + 0.5, ["likeliest", "second", "third"])
    axes.invert_yaxis()
    axes.set_title(f"After {found.context[0]!r}: what each layer would say")


def heads(axes: Axes, names: Names) -> None:
    """What silencing each head changes."""
    effect = names["effect"]
    limit = float(np.abs(effect).max())
    cells(axes, effect, low=-limit, limit=limit, colours="RdBu")
    axes.set_xticks(np.arange(effect.shape[1]) + 0.5, map(str, range(effect.shape[1])))
    axes.set_yticks(np.arange(0, len(effect), 2) + 0.5, map(str, range(0, len(effect), 2)))
    axes.invert_yaxis()
    axes.set(xlabel="head", ylabel="layer")
    axes.set_title("Log-probability of Paris without the head")


def patching(axes: Axes, names: Names) -> None:
    """How much of the answer each patch restores."""
    restored = names["restored"]
    cells(axes, restored, limit=1.0, colours="Blues")
    tokens = token_ticks(names["clean"].tokens)
    tokens[3] += " for \N{OPEN BOX}Italy"
    axes.set_xticks(np.arange(len(tokens)) + 0.5, tokens, rotation=30)
    axes.set_yticks(np.arange(0, len(restored), 2) + 0.5, map(str, range(0, len(restored), 2)))
    axes.invert_yaxis()
    axes.set_ylabel("output of layer")
    axes.set_title("Answer restored by patching one activation")


PICTURES: dict[str, tuple[Callable[[Axes, Names], None], tuple[float, float]]] = {
    "attention": (attention, (4.6, 3.6)),
    "lens": (lens, (5.2, 7.0)),
    "heads": (heads, (4.6, 5.6)),
    "patching": (patching, (4.6, 5.6)),
}


@click.command(epilog="Example: python docs/inspection_pictures.py model.qlm")
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(model: Path) -> None:
    """Run the blocks of docs/inspection.md with MODEL and draw its pictures.

    Needs matplotlib: pip install -e '.[plots]'.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = computed(model)
    for name, (draw, size) in PICTURES.items():
        with pyplot.rc_context(_STYLE):
            figure, axes = pyplot.subplots(figsize=size, layout="constrained")
            draw(axes, names)
            figure.savefig(_HERE / "pictures" / f"inspection-{name}.svg", metadata={"Date": None})
            pyplot.close(figure)


if __name__ == "__main__":
    main()
