"""A whole run on a tiny model: what is measured, told, and left after Ctrl-C."""

from __future__ import annotations

import numpy as np
import pytest

from qllama.bench import plan
from qllama.bench import runner as runner_module
from qllama.bench.limits import Limits
from qllama.bench.report import as_document
from qllama.bench.results import BenchModel, Results
from qllama.bench.runner import prepare, run
from qllama.errors import ContextLengthError, ModelNotFoundError

TESTS = plan.grid([6], [3], depths=[0, 10], parallel=[1, 2])


@pytest.fixture
def models(tiny_models, monkeypatch):
    monkeypatch.setattr(runner_module, "stream_memory", lambda: np.ones(2**20, np.uint8))
    return [BenchModel(name, str(path)) for name, path in tiny_models.items()]


def test_runner_measures_every_combination(models):
    settings, results = plan.BenchSettings([1, 2], 2), Results()
    prepare(models, TESTS, settings)
    run(models, TESTS, settings, results, lambda row, done: None)
    assert results.is_complete
    assert [(row.model.name, row.n_threads, row.test) for row in results.rows] == [
        (model.name, n, test) for model in models for n in (1, 2) for test in TESTS
    ]
    for row in results.rows:
        assert len(row.seconds) == 2
        assert min(row.seconds) > 0
    for n_threads in (1, 2):
        # One sample before each repetition.
        assert results.limits[n_threads].n_samples == len(models) * len(TESTS) * 2
        for model in models:
            assert len(results.weights_gb_s[model.name, n_threads]) == len(TESTS) * 2


def test_runner_few_repetitions_still_sample_the_limits_often_enough(models):
    settings, results = plan.BenchSettings([1], 1), Results()
    run(models[:1], TESTS[:1], settings, results, lambda row, done: None)
    assert results.limits[1].n_samples == 5


def test_runner_tells_of_each_run_before_it_and_of_the_last_after_it(models):
    told = []
    run(
        models[:1],
        TESTS[:2],
        plan.BenchSettings([1], 3),
        Results(),
        lambda row, done: told.append((row.test.name, done, len(row.seconds))),
    )
    each = [(0, 0), (0, 0), (1, 1), (2, 2), (3, 3)]
    assert told == [(name, *counts) for name in ("pp6", "tg3") for counts in each]


def test_runner_interrupted_keeps_what_is_measured(models):
    def interrupt(row, done):
        if row.test.name == "tg3" and done == 1:
            raise KeyboardInterrupt

    results = Results()
    with pytest.raises(KeyboardInterrupt):
        run(models[:1], TESTS[:3], plan.BenchSettings([1], 2), results, interrupt)
    assert not results.is_complete
    assert [(row.test.name, len(row.seconds)) for row in results.rows] == [("pp6", 2), ("tg3", 1)]


def test_runner_interrupted_in_the_first_sample_of_a_limit_leaves_a_document(models, monkeypatch):
    read_once, calls = Limits.read_once, []

    def interrupted(limits, data):
        calls.append(limits.n_threads)
        if limits.n_threads == 2:  # the first time with so many threads
            raise KeyboardInterrupt
        return read_once(limits, data)

    monkeypatch.setattr(Limits, "read_once", interrupted)
    results = Results()
    with pytest.raises(KeyboardInterrupt):
        run(models[:1], TESTS[:1], plan.BenchSettings([1, 2], 1), results, lambda row, done: None)
    assert calls == [1, 2]
    document = as_document(results)
    assert [(row["test"], row["threads"]) for row in document["rows"]] == [("pp6", 1)]
    assert list(document["limits"]["weights_gb_s"]["tied"]) == ["1"]


def test_runner_too_long_a_test_is_refused_before_anything_runs(models):
    tests = [plan.Test(4, 0), plan.Test(100, 0, depth=29)]
    message = "test pp100 @ d29: expected at most the 128 tokens that tied can hold, found 129"
    with pytest.raises(ContextLengthError, match=message):
        prepare(models, tests, plan.BenchSettings([1], 1))


def test_runner_missing_file_is_refused_before_anything_runs(models):
    missing = [*models, BenchModel("gone", "gone.qlm")]
    with pytest.raises(ModelNotFoundError, match="gone"):
        prepare(missing, TESTS, plan.BenchSettings([1], 1))


def test_runner_weights_are_all_of_the_file(tiny_models):
    from qllama.format import QlmFile

    with QlmFile.open(tiny_models["tied"]) as file:
        weights = runner_module._all_tensors(file)
        names = list(file.tensors)
        assert bytes(weights[: file.data(names[0]).size]) == bytes(file.data(names[0]))
        assert bytes(weights[-file.data(names[-1]).size :]) == bytes(file.data(names[-1]))
        assert sum(t.n_bytes for t in file.tensors.values()) <= weights.size
