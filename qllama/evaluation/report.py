"""Results as text in llama.cpp's labels, and as one JSON document.

`schema` in the document counts up when a key changes its meaning or goes away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from qllama.evaluation.estimates import Estimate, agreement, perplexity
from qllama.evaluation.runner import Results
from qllama.evaluation.scores import Comparison

__all__ = ["SCHEMA", "as_document", "as_text", "running_estimate"]

SCHEMA = 1

_KLD_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)
_DELTA_P_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)


def running_estimate(results: Results) -> str:
    """Return the perplexity up to the last window, as `[12]8.3456,`."""
    return f"[{len(results.nll)}]{results.running_ppl[-1]:.4f},"


def as_text(results: Results) -> str:
    """Return the figures of all windows, at least one, as lines of text."""
    ppl = perplexity(np.concatenate(results.nll))
    lines = [f"Final estimate: PPL = {ppl.value:.4f} +/- {ppl.error:.5f}"]
    if results.comparisons:
        lines += _comparison_lines(Comparison.joined(results.comparisons))
    return "\n".join(lines)


def _comparison_lines(scores: Comparison) -> Iterator[str]:
    found = agreement(scores)
    yield ""
    yield "====== Perplexity statistics ======"
    yield f"Mean PPL(Q)                   : {_plain(found.ppl)}"
    yield f"Mean PPL(base)                : {_plain(found.base_ppl)}"
    yield f"Cor(ln(PPL(Q)), ln(PPL(base))): {found.correlation:7.2%}"
    yield f"Mean ln(PPL(Q)/PPL(base))     : {_plain(found.ln_ppl_ratio)}"
    yield f"Mean PPL(Q)/PPL(base)         : {_plain(found.ppl_ratio)}"
    yield f"Mean PPL(Q)-PPL(base)         : {_plain(found.ppl_difference)}"
    yield ""
    yield "====== KL divergence statistics ======"
    yield f"Mean    KLD: {_plain(found.mean_kld)}"
    for name, value in _spread(scores.kld, _KLD_PERCENTILES).items():
        yield f"{name} KLD: {value:10.6f}"
    yield ""
    yield "====== Token probability statistics ======"
    yield f"Mean    Δp: {_percent(found.mean_delta_p)}"
    for name, value in _spread(scores.delta_p, _DELTA_P_PERCENTILES).items():
        yield f"{name} Δp: {value:7.3%}"
    yield f"RMS Δp    : {_percent(found.rms_delta_p)}"
    yield f"Same top p: {_percent(found.same_top)}"


def _plain(estimate: Estimate) -> str:
    return f"{estimate.value:10.6f} ± {estimate.error:10.6f}"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:6.3f} ± {100 * estimate.error:5.3f} %"


def _spread(values: npt.NDArray[np.float64], percentiles: tuple[float, ...]) -> dict[str, float]:
    """Extremes and percentiles by llama.cpp's labels, greatest first."""
    found = {"Maximum": float(values.max())}
    for percent in percentiles:
        name = "Median " if percent == 50 else f"{percent:4.1f}%  "
        found[name] = float(np.percentile(values, percent))
    found["Minimum"] = float(values.min())
    return found


def as_document(results: Results) -> dict[str, Any]:
    """Return the figures of all windows, at least one, as plain JSON values.

    Probabilities are fractions here, where the text has percent; what is no number is None.
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "n_windows": len(results.nll),
        "n_scored": sum(window.size for window in results.nll),
        "ppl": _value(perplexity(np.concatenate(results.nll))),
        "running_ppl": [_value(ppl) for ppl in results.running_ppl],
        "comparison": None,
    }
    if results.comparisons:
        scores = Comparison.joined(results.comparisons)
        document["comparison"] = {
            **{name: _value(figure) for name, figure in agreement(scores)._asdict().items()},
            "kld": _values(_spread(scores.kld, _KLD_PERCENTILES)),
            "delta_p": _values(_spread(scores.delta_p, _DELTA_P_PERCENTILES)),
        }
    return document


def _value(figure: float | Estimate) -> Any:
    if isinstance(figure, Estimate):
        return {name: _value(part) for name, part in figure._asdict().items()}
    return figure if math.isfinite(figure) else None


def _values(spread: dict[str, float]) -> dict[str, Any]:
    return {name.strip().lower(): _value(value) for name, value in spread.items()}
