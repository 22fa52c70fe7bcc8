"""Reading windows with models whose probabilities are known, and with SmolLM2."""

from __future__ import annotations

import math
import pydoc_data.topics

import numpy as np
import pytest
from fake_reader import FakeReader

from qllama import Llama
from qllama.evaluation import runner
from qllama.evaluation.estimates import agreement, perplexity
from qllama.evaluation.runner import Evaluation, Results, Settings, score
from qllama.evaluation.scores import Comparison
from qllama.evaluation.windows import Windows
from qllama.model.engine import Engine

# Row i: what is expected after token i.
TABLE = [[1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 8, 3 / 4], [1 / 3, 1 / 3, 1 / 3]]
BASE = [[1 / 4, 1 / 2, 1 / 4], [1 / 8, 1 / 4, 5 / 8], [1 / 3, 1 / 3, 1 / 3]]
# First halves differ from what is scored, so that scoring them shows.
WINDOWS = Windows(np.array([[2, 2, 2, 0, 1, 2, 0, 0], [0, 0, 0, 1, 2, 1, 1, 1]], np.int32))
# After places 4, 5 and 6 come 1>2, 2>0, 0>0 and 2>1, 1>1, 1>1.
PROBABILITIES = [[3 / 4, 1 / 3, 1 / 2], [1 / 3, 1 / 8, 1 / 8]]


def scored(model, base=None, slab_rows=512):
    results = Results()
    score(WINDOWS, model, base, results, lambda: None, slab_rows)
    return results


def test_score_is_of_the_second_half_of_each_window():
    results = scored(FakeReader(TABLE))
    assert not results.comparisons
    for nll, expected in zip(results.nll, PROBABILITIES, strict=True):
        assert np.exp(-nll) == pytest.approx(expected, rel=1e-5)
    product = np.prod(PROBABILITIES)
    assert results.running_ppl == pytest.approx([2.0, product ** (-1 / 6)], rel=1e-5)
    assert perplexity(np.concatenate(results.nll)).value == pytest.approx(product ** (-1 / 6))


def test_score_with_a_base_compares_token_by_token():
    results = scored(FakeReader(TABLE), FakeReader(BASE))
    first, second = results.comparisons
    after_0 = math.log(2) / 4
    after_1 = math.log(2) / 4 + 5 / 8 * math.log(5 / 6)
    assert first.kld == pytest.approx([after_1, 0, after_0], abs=1e-6)
    assert second.kld == pytest.approx([0, after_1, after_1], abs=1e-6)
    assert first.delta_p == pytest.approx([1 / 8, 0, 1 / 4], abs=1e-6)
    assert first.same_top.tolist() == [True, True, False]
    assert np.array_equal(results.nll, [first.nll, second.nll])


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("has_base", [True, False])
def test_score_in_slabs_holds_no_more_logits_and_changes_nothing(rows, has_base):
    model, base = FakeReader(TABLE), FakeReader(BASE) if has_base else None
    results = scored(model, base, rows)
    assert [reader.most_rows for reader in (model, base) if reader] == [rows] * (1 + has_base)
    expected = scored(FakeReader(TABLE), FakeReader(BASE) if has_base else None)
    assert np.allclose(results.nll, expected.nll, rtol=0, atol=1e-5)  # other offsets
    assert len(results.comparisons) == len(expected.comparisons)


def test_score_interrupted_keeps_whole_windows():
    results = Results()
    reports = []

    def interrupt():
        reports.append(len(results.nll))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(WINDOWS, FakeReader(TABLE), None, results, interrupt)
    assert reports == [1]
    assert [nll.size for nll in results.nll] == [3]


@pytest.fixture(scope="module")
def prose():
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics))[:2000]


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_evaluation_of_smollm2_gives_what_its_logits_say(
    smollm2_q8, smollm2_f16, prose, monkeypatch
):
    n_ctx, n_windows = 64, 2
    shapes = []

    class SpiedEngine(Engine):
        def evaluate(self, *arguments, **options):
            logits = super().evaluate(*arguments, **options)
            shapes.append(logits.shape)
            return logits

    monkeypatch.setattr(runner, "Engine", SpiedEngine)
    monkeypatch.setattr(runner, "_SLAB_BYTES", 4 * 49152 * 9 + 5)  # nine tokens of it
    settings = Settings(n_ctx=n_ctx, max_windows=n_windows)
    reports = []
    with Evaluation(smollm2_q8, prose, "prose", settings, smollm2_f16) as evaluation:
        evaluation.run(lambda: reports.append(len(evaluation.results.nll)))
    assert reports == [1, 2]
    assert max(shapes) == (9, 49152)
    with Llama(smollm2_q8, n_ctx=n_ctx) as llm, Llama(smollm2_f16, n_ctx=n_ctx) as base:
        ids = llm.tokenize(prose)
        windows = [ids[i * n_ctx : (i + 1) * n_ctx] for i in range(n_windows)]
        first = n_ctx // 2
        q, p = (
            np.concatenate([log_softmax(model.logits(w))[first:-1] for w in windows])
            for model in (llm, base)
        )
    targets = np.concatenate([w[first + 1 :] for w in windows])
    nll = -q[np.arange(targets.size), targets]
    found = Comparison.joined(evaluation.results.comparisons)
    # The same float32 logits in both, bit for bit: what remains is float64 rounding.
    assert found.nll == pytest.approx(nll, abs=1e-12)
    assert found.kld == pytest.approx((np.exp(p) * (p - q)).sum(-1), abs=1e-12)
    assert np.array_equal(found.same_top, p.argmax(-1) == q.argmax(-1))
    assert 0 < agreement(found).mean_kld.value < 0.0041  # as tests/test_agreement.py


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
def test_evaluation_holds_the_base_in_f16_whatever_the_model(smollm2_q8, prose, kv_type):
    settings = Settings(n_ctx=64, max_windows=1, kv_type=kv_type)
    with Evaluation(smollm2_q8, prose, "prose", settings, smollm2_q8) as evaluation:
        evaluation.run(lambda: None)
    (scores,) = evaluation.results.comparisons
    assert scores.kld.any() == (kv_type == "q8")
