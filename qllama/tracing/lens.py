"""The logit lens: what a model would say if it stopped after each of its layers.

The residual stream of every layer is read as the last one's is, by the final norm and
the output head.

References
----------
nostalgebraist 2020, "interpreting GPT: the logit lens" (LessWrong).
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["LogitLens", "ReadOut", "look"]

#: See `Engine.read_out`.
ReadOut: TypeAlias = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True, repr=False)
class LogitLens:
    """The likeliest next tokens after each layer, at one or several tokens of a text.

    Parameters
    ----------
    names : tuple of str
        Of the activations that were read, from the first layer to the last.
    positions : tuple of int
        Places of the tokens in the text.
    context : tuple of str
        Their texts.
    token_ids : int64, (n_names, n_positions, k)
        Likeliest first.
    probabilities : float32, (n_names, n_positions, k)
    tokens : nested list of str, [n_names][n_positions][k]
        The texts of `token_ids`.
    """

    names: tuple[str, ...]
    positions: tuple[int, ...]
    context: tuple[str, ...]
    token_ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    tokens: list[list[list[str]]]

    def __repr__(self) -> str:
        head, *rows = self._cells()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = (
            "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip()
            for row in (head, *rows)
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *rows = (
            "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row)
            for kind, row in zip(["th", *["td"] * len(self.names)], self._cells(), strict=True)
        )
        return f"<table><tr>{'</tr><tr>'.join([head, *rows])}</tr></table>"

    def _cells(self) -> list[list[str]]:
        """Return a table: of one token the k likeliest, of several the likeliest one each."""
        if len(self.positions) == 1:
            head = [f"after {self.context[0]!r}", *[""] * self.token_ids.shape[2]]
            places = [(0, i) for i in range(self.token_ids.shape[2])]
        else:
            head = ["", *map(repr, self.context)]
            places = [(i, 0) for i in range(len(self.positions))]
        return [head] + [
            [name.removesuffix(".output")]
            + [f"{tokens[p][i]!r} {chances[p, i]:.2f}" for p, i in places]
            for name, tokens, chances in zip(
                self.names, self.tokens, self.probabilities, strict=True
            )
        ]


def look(
    states: Sequence[tuple[str, npt.NDArray[np.float32]]],
    context: Sequence[str],
    positions: Sequence[int],
    k: int,
    read_out: ReadOut,
    decode: Callable[[int], str],
) -> LogitLens:
    """Read the residual stream after each layer.

    Parameters
    ----------
    states : sequence of (str, float32 (n_tokens, hidden_size))
        Names and values.
    context : sequence of str, (n_tokens,)
        The text's tokens.
    positions : sequence of int
        Which of them to read at.
    k : int
    read_out : callable
        See `Engine.read_out`.
    decode : callable
        Returns a token's text.
    """
    ids, chances = [], []
    for _, values in states:  # one layer after the other: logits of all would be large
        logits = read_out(values[list(positions)]).astype(np.float64)
        likeliest = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
        ids.append(likeliest)
        chances.append(np.take_along_axis(softmax, likeliest, axis=1).astype(np.float32))
    token_ids = np.array(ids)
    return LogitLens(
        tuple(name for name, _ in states),
        tuple(positions),
        tuple(context[p] for p in positions),
        token_ids,
        np.array(chances),
        [[[decode(int(t)) for t in row] for row in layer] for layer in token_ids],
    )
