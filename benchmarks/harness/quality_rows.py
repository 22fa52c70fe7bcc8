"""What quality.py measures of each quantized model, and its table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from qllama.bench.markdown import table

__all__ = ["FED", "WEIGHTED", "QualityRow", "quality_table"]

#: What the names of types end with that are made with importance, and with feedback too.
WEIGHTED = " + importance"
FED = f"{WEIGHTED} + feedback"


@dataclass(slots=True)
class QualityRow:
    """One quantized model beside the original, both run by the engine that made it.

    Parameters
    ----------
    engine, type : str
        Who made it, and how it is called.
    file : str
        Its name.
    n_bytes : int
        Of the file.
    bits_per_weight : float
        Of its tensors, padding and scales counted.
    ppl, ppl_error, kld, kld_error, same_top : float
        On the text: perplexity and mean Kullback-Leibler divergence from the original with
        their standard errors, and how often both hold the same token for the likeliest.
    speeds : dict of str to list of float
        Tokens a second, by test; a sample a round.
    """

    engine: str
    type: str
    file: str
    n_bytes: int
    bits_per_weight: float
    ppl: float
    ppl_error: float
    kld: float
    kld_error: float
    same_top: float
    speeds: dict[str, list[float]] = field(default_factory=dict)


def quality_table(rows: Sequence[QualityRow]) -> str:
    """Tabulate the rows in their order; speeds are medians."""
    tests = list(dict.fromkeys(test for row in rows for test in row.speeds))
    header = ["type", "file MB", "bits", "PPL", "mean KLD", "same top p"]
    return table(
        [*header, *(f"{test} t/s" for test in tests)],
        [
            [
                row.type if row.engine == "qllama" else f"{row.engine} {row.type}",
                f"{row.n_bytes / 1e6:.1f}",
                f"{row.bits_per_weight:.2f}",
                f"{row.ppl:.2f} ± {row.ppl_error:.2f}",
                f"{row.kld:.4f} ± {row.kld_error:.4f}",
                f"{row.same_top:.1%}",
                *(_median(row.speeds.get(test, ())) for test in tests),
            ]
            for row in rows
        ],
        words={"type"},
    )


def _median(samples: Sequence[float]) -> str:
    return f"{statistics.median(samples):.0f}" if samples else ""
