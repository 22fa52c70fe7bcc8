"""Several answers to one prompt, decoded as one batch.

Owns the steps: each evaluates one token of every answer that is not at its end. A step
of eight takes some two times as long as a step of one: the weights are read once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qllama.generation.draft import Draft
from qllama.generation.interrupt import EndedEarly, Interrupt
from qllama.generation.results import Completion, Timings
from qllama.generation.session import Progress, Session

__all__ = ["BatchEvaluator", "OpenEngine", "Together"]

_Ids = npt.NDArray[np.int32]


class BatchEvaluator(Protocol):
    """What a batch needs of an engine."""

    def write_cache(self, chunks: npt.NDArray[np.uint8], slot: int = 0) -> None:
        """Have a slot hold keys and values; see `Engine.write_cache`."""

    def forward(
        self, tokens: _Ids, positions: _Ids, slots: _Ids, outputs: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Evaluate a ragged batch; see `Engine.forward`."""


OpenEngine = Callable[[int], AbstractContextManager[BatchEvaluator]]


class Together:
    """Answers to one prompt in the making.

    Parameters
    ----------
    session : Session
        Evaluates the prompt; used only under `lock`.
    lock : threading.Lock
        Guards the session, and computing at all.
    drafts : sequence of Draft
        The answers, all of the same prompt.
    open_engine : callable
        Given tokens of a sequence, returns a context of an engine with a slot a draft.
    timeout : float, optional
        Seconds from now until all answers end as they are.
    load_seconds : float
        Passed on to `Timings`.
    on_progress : callable, optional
        Given tokens of the prompt done and to do between its batches.
    """

    def __init__(
        self,
        session: Session,
        lock: threading.Lock,
        drafts: Sequence[Draft],
        open_engine: OpenEngine,
        *,
        timeout: float | None = None,
        load_seconds: float = 0.0,
        on_progress: Progress | None = None,
    ) -> None:
        self._session = session
        self._lock = lock
        self._drafts = drafts
        self._open_engine = open_engine
        self._interrupt = Interrupt(timeout)
        self._load_seconds = load_seconds
        self._on_progress = on_progress
        self._texts = [""] * len(drafts)

    def cancel(self) -> None:
        """End all answers at the next step; from any thread."""
        self._interrupt.cancel()

    def completions(self) -> list[Completion]:
        """Make all answers, undisturbed by other calls."""
        with self._interrupt.turn(self._lock):
            started = time.perf_counter()
            n_reused = 0
            prompt_seconds = 0.0
            try:
                self._interrupt.check()
                for draft in self._drafts:
                    draft.prepare()
                tokens = self._drafts[0].tokens
                logits, n_reused = self._session.evaluate(
                    tokens, on_progress=self._on_progress, check=self._interrupt.check
                )
                prompt_seconds = time.perf_counter() - started
                self._take(range(len(self._drafts)), np.repeat(logits, len(self._drafts), axis=0))
                self._decode()
            except EndedEarly as end:
                for i, draft in enumerate(self._drafts):
                    if draft.finish_reason is None:
                        self._texts[i] += draft.end(end.reason)
            seconds = time.perf_counter() - started - prompt_seconds
        return [
            self._completion(i, n_reused, prompt_seconds, seconds) for i in range(len(self._drafts))
        ]

    def _decode(self) -> None:
        going = self._going()
        if not going:
            return
        _, cache = self._session.snapshot()
        with self._open_engine(max(draft.n_limit for draft in self._drafts)) as engine:
            for i in going:
                engine.write_cache(cache, slot=i)
            del cache
            while going:
                self._interrupt.check()
                tokens = np.array([self._drafts[i].tokens[-1] for i in going], np.int32)
                places = np.array([self._drafts[i].n_tokens - 1 for i in going], np.int32)
                slots = np.array(going, np.int32)
                self._take(going, engine.forward(tokens, places, slots, range(len(going))))
                going = self._going()

    def _going(self) -> list[int]:
        return [i for i, draft in enumerate(self._drafts) if draft.finish_reason is None]

    def _take(self, which: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
        """Have drafts choose their next tokens by their rows of float32 (n_drafts, vocab_size)."""
        for i, row in zip(which, logits, strict=True):
            self._texts[i] += self._drafts[i].take(row)

    def _completion(
        self, i: int, n_reused: int, prompt_seconds: float, seconds: float
    ) -> Completion:
        draft = self._drafts[i]
        assert draft.finish_reason is not None
        timings = Timings(
            load_seconds=self._load_seconds,
            prompt_tokens=draft.n_prompt,
            reused_tokens=n_reused,
            prompt_seconds=prompt_seconds,
            completion_tokens=draft.n_tokens - draft.n_prompt,
            completion_seconds=seconds,
        )
        noted = draft.logprobs_from(draft.n_prompt)
        ids = draft.token_ids
        return Completion(self._texts[i], ids, draft.finish_reason, draft.seed, timings, noted)
