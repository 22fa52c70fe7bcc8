"""What guessing gained for one question, and all of them as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.ratios import Ratio, ratio_of_rounds
from qllama.bench.markdown import table

__all__ = ["SpeculationRow", "speculation_table"]


@dataclass(slots=True)
class SpeculationRow:
    """One question's answers.

    Parameters
    ----------
    question : str
        What it is called.
    repeats : bool
        Whether the answer should repeat its prompt.
    sampling : str
        Temperature, or `greedy`.
    plain, ahead : list of float
        Tokens a second of plain decoding and with guesses, one a round.
    n_tokens, n_guessed, n_accepted : int
        Of the last answer with guesses.
    """

    question: str
    repeats: bool
    sampling: str
    plain: list[float] = field(default_factory=list)
    ahead: list[float] = field(default_factory=list)
    n_tokens: int = 0
    n_guessed: int = 0
    n_accepted: int = 0

    @property
    def ratio(self) -> Ratio:
        """How many times as fast the answer is with guesses."""
        return ratio_of_rounds([[x] for x in self.ahead], [[x] for x in self.plain])


def speculation_table(rows: Sequence[SpeculationRow]) -> str:
    """Tabulate speeds, ratios and acceptance."""
    header = ["answer", "sampling", "tokens", "plain t/s", "ahead t/s", "ratio (min-max)"]
    header += ["guessed", "accepted"]
    cells = [
        [
            f"{row.question}{', repeats' * row.repeats}",
            row.sampling,
            str(row.n_tokens),
            f"{statistics.median(row.plain):.1f}",
            f"{statistics.median(row.ahead):.1f}",
            str(row.ratio),
            str(row.n_guessed),
            str(row.n_accepted),
        ]
        for row in rows
    ]
    return table(header, cells, header[:2])
