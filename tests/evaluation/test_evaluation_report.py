"""Results as text and as JSON: llama.cpp's labels, and figures a reader can check."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from qllama.evaluation.report import as_document, as_text, running_estimate
from qllama.evaluation.runner import Results
from qllama.evaluation.scores import Comparison


@pytest.fixture
def results():
    """Two windows; divergences 0, 1, ... 1000 thousandths, so that percentiles show."""
    kld = np.arange(1001) / 1000
    nll = np.log(np.where(np.arange(1001) % 2, 2.0, 8.0))
    whole = Comparison(nll, np.log(np.full(1001, 4.0)), kld, np.arange(1001) % 4 > 0)
    parts = [
        Comparison(*(getattr(whole, n)[rows] for n in ("nll", "base_nll", "kld", "same_top")))
        for rows in (slice(0, 500), slice(500, None))
    ]
    return Results([part.nll for part in parts], parts)


def test_text_without_a_base_is_the_final_estimate():
    results = Results([np.log([2.0, 8.0])])
    # ln 4 on average and ln 2 away from it: 4 ln 2 = 2.77259.
    assert as_text(results) == "Final estimate: PPL = 4.0000 +/- 2.77259"
    assert running_estimate(results) == "[1]4.0000,"


def test_text_with_a_base_has_llama_cpps_lines(results):
    lines = as_text(results).splitlines()
    figures = dict(line.split(":") for line in lines if ":" in line)
    assert figures["Mean    KLD"].split() == ["0.500000", "±", "0.009138"]
    assert figures["Maximum KLD"].split() == ["1.000000"]
    assert figures["99.9%   KLD"].split() == ["0.999000"]
    assert figures["Median  KLD"].split() == ["0.500000"]
    assert figures[" 0.1%   KLD"].split() == ["0.001000"]
    assert figures["Minimum KLD"].split() == ["0.000000"]
    # A half or an eighth where the base has a quarter.
    assert figures["Maximum Δp"].split() == ["25.000%"]
    assert figures["Median  Δp"].split() == ["-12.500%"]
    rms = 100 * math.sqrt((500 * 0.25**2 + 501 * 0.125**2) / 1001)
    assert figures["RMS Δp    "].split()[0] == f"{rms:.3f}"
    assert figures["Same top p"].split() == ["74.925", "±", "1.371", "%"]
    assert figures["Mean PPL(base)                "].split() == ["4.000000", "±", "0.000000"]
    assert [line for line in lines if line.startswith("=")] == [
        "====== Perplexity statistics ======",
        "====== KL divergence statistics ======",
        "====== Token probability statistics ======",
    ]


def test_document_has_the_figures_of_the_text_as_numbers(results):
    document = json.loads(json.dumps(as_document(results), allow_nan=False))
    assert document["schema"] == 1
    assert (document["n_windows"], document["n_scored"]) == (2, 1001)
    assert document["running_ppl"][-1] == pytest.approx(document["ppl"]["value"])
    comparison = document["comparison"]
    assert comparison["ppl"] == document["ppl"]
    assert comparison["mean_kld"]["value"] == pytest.approx(0.5)
    assert comparison["kld"]["99.9%"] == pytest.approx(0.999)
    assert comparison["kld"]["median"] == pytest.approx(0.5)
    assert comparison["delta_p"]["maximum"] == pytest.approx(0.25)
    assert comparison["same_top"]["value"] == pytest.approx(750 / 1001)


def test_document_without_a_base_has_no_comparison():
    assert as_document(Results([np.log([2.0, 8.0])]))["comparison"] is None


def test_document_writes_what_is_no_number_as_null():
    document = as_document(Results([np.array([np.nan, 1.0])]))
    assert document["ppl"] == {"value": None, "error": None}
    assert document["running_ppl"] == [None]
