"""Runs one test on an engine whose sequences already hold what the test builds on."""

from __future__ import annotations

import numpy as np

from qllama.bench.plan import BenchSettings, Test
from qllama.config import DEFAULT_N_BATCH
from qllama.format import QlmFile
from qllama.model.engine import Engine

__all__ = ["Session"]


class Session:
    """An engine for tests of one depth.

    Parameters
    ----------
    file : QlmFile
        Must stay open while the session lives.
    tests : list of Test
        Those that it will run.
    n_threads : int
    settings : BenchSettings
    """

    def __init__(
        self, file: QlmFile, tests: list[Test], n_threads: int, settings: BenchSettings
    ) -> None:
        together = max(test.n_parallel for test in tests)
        self._engine = Engine(
            file,
            n_ctx=max(test.n_ctx for test in tests),
            n_threads=n_threads,
            n_slots=together,
            n_batch=settings.n_batch or max(DEFAULT_N_BATCH, together),
            kv_type=settings.kv_type,
        )
        self.n_batch = self._engine.n_batch
        self._n_filled = 0
        # Random as llama-bench's: speed does not depend on them. Seeded all the same.
        tokens = np.random.default_rng(0).integers(0, file.config.vocab_size, self._engine.n_ctx)
        self._tokens: list[int] = tokens.tolist()

    def fill(self, test: Test) -> None:
        """Have the sequences of `test` hold what it builds on, if they do not yet."""
        for slot in range(self._n_filled, test.n_parallel):
            if test.depth:
                self._engine.evaluate(self._tokens[: test.depth], position=0, slot=slot)
            self._n_filled = slot + 1

    def run(self, test: Test) -> None:
        """Evaluate the tokens of `test`; what it builds on stays."""
        if test.n_prompt:
            self._engine.evaluate(self._tokens[: test.n_prompt], position=test.depth)
        start = test.depth + test.n_prompt
        if test.n_parallel == 1:
            for position in range(start, test.n_ctx):
                self._engine.evaluate([self._tokens[position]], position=position)
            return
        slots = np.arange(test.n_parallel, dtype=np.int32)
        for position in range(start, test.n_ctx):
            tokens = np.full(test.n_parallel, self._tokens[position], np.int32)
            positions = np.full(test.n_parallel, position, np.int32)
            self._engine.forward(tokens, positions, slots, range(test.n_parallel))

    def touch(self, test: Test) -> None:
        """Evaluate one token after what `test` builds on: it brings the caches back."""
        self._engine.evaluate(self._tokens[:1], position=test.depth)

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()
