"""Runs tests on models and takes the time.

Every test begins with a run that is not timed. Before each repetition the limits
of the machine are sampled once, then one token is evaluated untimed, so that the
caches hold what they hold in the middle of work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import groupby

import numpy as np
import numpy.typing as npt

from qllama.bench.counts import ModelCounts
from qllama.bench.limits import Limits, stream_memory
from qllama.bench.plan import BenchSettings, Test
from qllama.bench.results import BenchModel, Results, Row
from qllama.bench.session import Session
from qllama.errors import ContextLengthError
from qllama.format import QlmFile
from qllama.kernels.probes import compile_probes
from qllama.model.warmup import OnCompile, warmup

__all__ = ["OnMeasure", "prepare", "run"]

#: Called as (row, repetitions done) before each run of a test and after the last; the
#: first comes twice with 0, as the run that is not timed comes before it.
OnMeasure = Callable[[Row, int], None]

_MIN_LIMIT_SAMPLES = 5


def prepare(
    models: Sequence[BenchModel],
    tests: Sequence[Test],
    settings: BenchSettings,
    on_compile: OnCompile | None = None,
) -> None:
    """Check that every model can run every test, and make the kernels ready.

    Parameters
    ----------
    models : sequence of BenchModel
    tests : sequence of Test
    settings : BenchSettings
    on_compile : callable, optional
        As `Engine` calls it.

    Raises
    ------
    ContextLengthError
        A test needs a longer context than a model has.
    QlmFormatError, ModelNotFoundError, UnsupportedModelError
        A file cannot be opened.
    """
    types = {"q8_0"} if settings.kv_type == "q8" else set()
    for model in models:
        with QlmFile.open(model.path) as file:
            limit = file.config.max_position_embeddings
            types |= {t.type for t in file.tensors.values() if len(t.shape) == 2}
        for test in tests:
            if test.n_ctx > limit:
                raise ContextLengthError(
                    f"test {test.name}: expected at most the {limit} tokens that "
                    f"{model.name} can hold, found {test.n_ctx}; choose a shorter one"
                )
    warmup(types, on_compile)
    compile_probes()


def run(
    models: Sequence[BenchModel],
    tests: Sequence[Test],
    settings: BenchSettings,
    results: Results,
    on_measure: OnMeasure,
) -> None:
    """Measure every model with every number of threads and every test.

    Parameters
    ----------
    models : sequence of BenchModel
    tests : sequence of Test
        Those of one depth stand together.
    settings : BenchSettings
    results : Results
        Filled as the run goes; right also after an exception.
    on_measure : callable
    """
    memory = stream_memory()
    for n_threads in settings.n_threads:
        results.limits[n_threads] = Limits(n_threads, memory)
    for model in models:
        with QlmFile.open(model.path, use_mmap=settings.use_mmap) as file:
            runner = _Runner(model, file, settings, results, on_measure)
            for n_threads in settings.n_threads:
                for _, same_depth in groupby(tests, key=lambda test: test.depth):
                    runner.run(list(same_depth), n_threads)
    for limits in results.limits.values():
        while limits.n_samples < _MIN_LIMIT_SAMPLES:
            limits.sample()
        limits.close()
    results.is_complete = True


class _Runner:
    """Runs tests on one open model."""

    def __init__(
        self,
        model: BenchModel,
        file: QlmFile,
        settings: BenchSettings,
        results: Results,
        on_measure: OnMeasure,
    ) -> None:
        self._model = model
        self._file = file
        self._counts = ModelCounts.of(file, settings.kv_type)
        self._weights = _all_tensors(file)
        self._settings = settings
        self._results = results
        self._on_measure = on_measure

    def run(self, tests: list[Test], n_threads: int) -> None:
        """Run tests of one depth on one engine."""
        with closing(Session(self._file, tests, n_threads, self._settings)) as session:
            for test in tests:
                row = Row(
                    self._model,
                    self._counts,
                    test,
                    n_threads,
                    n_batch=session.n_batch,
                    kv_type=self._settings.kv_type,
                    use_mmap=self._settings.use_mmap,
                )
                self._measure(row, session)

    def _measure(self, row: Row, session: Session) -> None:
        test = row.test
        self._on_measure(row, 0)
        session.fill(test)
        session.run(test)
        for i in range(self._settings.repetitions):
            self._on_measure(row, i)
            self._sample_limits(row.n_threads)
            session.touch(test)
            start = time.perf_counter()
            session.run(test)
            row.seconds.append(time.perf_counter() - start)
            if i == 0:
                self._results.rows.append(row)
        self._on_measure(row, self._settings.repetitions)

    def _sample_limits(self, n_threads: int) -> None:
        limits = self._results.limits[n_threads]
        limits.sample()
        gb_s = limits.read_once(self._weights)  # Ctrl-C in it must leave no empty list
        self._results.weights_gb_s.setdefault((self._model.name, n_threads), []).append(gb_s)


def _all_tensors(file: QlmFile) -> npt.NDArray[np.uint8]:
    """The stored data of all tensors, uint8 (n,): they lie one after the other."""
    first, *_, last = (file.data(name) for name in file.tensors)
    n_bytes = last.ctypes.data + last.nbytes - first.ctypes.data
    return np.lib.stride_tricks.as_strided(first, (n_bytes,), writeable=False)
