"""The generation loop: evaluate, choose a token, pass its text on, until it ends.

Owns the turns that answers take with one session: who waits, who is cancelled. Gets
its prompt as token ids, and knows neither files nor chat templates.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from qllama.generation.draft import Draft
from qllama.generation.interrupt import EndedEarly, Interrupt
from qllama.generation.results import Completion, FinishReason, Piece, Timings
from qllama.generation.session import Progress, Session
from qllama.generation.speculation import Speculation

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["Stream"]

_Result = TypeVar("_Result")


class Stream(Iterator[Piece]):
    """An answer as it is made: iterate over it for its pieces.

    In a coroutine, `async for piece in stream` does so without blocking the event loop,
    and `await stream` returns the whole answer; cancelling the task cancels the answer.

    Every step hands its whole sequence to the session, so a stream stays right when
    other calls use the session between two pieces. Nothing is held between steps: a
    stream may be abandoned at any time, and an exception out of it (a KeyboardInterrupt,
    say) leaves the session consistent.

    Parameters
    ----------
    session : Session
        Evaluates; used only under `lock`.
    lock : threading.Lock
        Guards the session.
    draft : Draft
        The answer.
    speculation : Speculation, optional
        Evaluates guessed tokens with the chosen ones.
    timeout : float, optional
        Seconds from now until the answer ends as it is.
    load_seconds : float
        Passed on to `Timings`.
    on_progress : callable, optional
        Given tokens done and to do between the batches of a long evaluation: the
        prompt's, or that of tokens which another call displaced.
    worker : callable, optional
        Returns the executor in which coroutines have their steps done.
    """

    def __init__(
        self,
        session: Session,
        lock: threading.Lock,
        draft: Draft,
        *,
        speculation: Speculation | None = None,
        timeout: float | None = None,
        load_seconds: float = 0.0,
        on_progress: Progress | None = None,
        worker: Callable[[], Executor] | None = None,
    ) -> None:
        self._session = session
        self._lock = lock
        self._draft = draft
        self._speculation = speculation
        self._interrupt = Interrupt(timeout)
        self._load_seconds = load_seconds
        self._on_progress = on_progress
        self._worker = worker
        self._closed = False
        self._n_reused = 0
        self._prompt_seconds = 0.0
        self._completion_seconds = 0.0

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None while it goes on."""
        if self._closed and self._draft.finish_reason is None:
            return "cancelled"
        return self._draft.finish_reason

    @property
    def seed(self) -> int:
        """Seed of the random draws, also when it was chosen at random."""
        return self._draft.seed

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token chosen so far."""
        return self._draft.token_ids

    @property
    def timings(self) -> Timings:
        """What the answer took so far."""
        return Timings(
            load_seconds=self._load_seconds,
            prompt_tokens=self._draft.n_prompt,
            reused_tokens=self._n_reused,
            prompt_seconds=self._prompt_seconds,
            completion_tokens=self._draft.n_tokens - self._draft.n_prompt,
            completion_seconds=self._completion_seconds,
            guessed_tokens=0 if self._speculation is None else self._speculation.n_guessed,
            accepted_tokens=0 if self._speculation is None else self._speculation.n_accepted,
        )

    def cancel(self) -> None:
        """End the answer at once, in the midst of a long prompt too; from any thread.

        The next piece is the last one, its `finish_reason` is `cancelled`.
        """
        self._interrupt.cancel()

    def close(self) -> None:
        """Cancel the answer and give no more pieces, as closing a generator does."""
        self._closed = True
        self._interrupt.cancel()

    def __next__(self) -> Piece:
        with self._interrupt.turn(self._lock):
            return self._advance()

    def completion(self) -> Completion:
        """Take all remaining pieces, undisturbed by other calls, as one text."""
        text = []
        with self._interrupt.turn(self._lock):
            while self.finish_reason is None:
                text.append(self._advance())
        reason = self.finish_reason
        assert reason is not None
        return Completion(
            "".join(text),
            self.token_ids,
            reason,
            self.seed,
            self.timings,
            self._draft.logprobs_from(self._draft.n_prompt),
        )

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Piece:
        piece = await self._elsewhere(lambda: next(self, None))
        if piece is None:
            raise StopAsyncIteration
        return piece

    def __await__(self) -> Generator[Any, None, Completion]:
        return self._elsewhere(self.completion).__await__()

    async def aclose(self) -> None:
        """Do what `close` does; for `contextlib.aclosing`."""
        self.close()

    async def _elsewhere(self, step: Callable[[], _Result]) -> _Result:
        """Do a step in the worker's thread; whoever stops waiting for it cancels the answer."""
        import asyncio

        executor = None if self._worker is None else self._worker()
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, step)
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _advance(self) -> Piece:
        """Step until there is text to pass on or the answer has ended."""
        draft = self._draft
        if self.finish_reason is not None:
            raise StopIteration
        n_before = draft.n_tokens
        text = ""
        while not text and draft.finish_reason is None:
            try:
                text = self._step()
            except EndedEarly as end:
                text = draft.end(end.reason)
        return Piece(
            text,
            draft.chosen_from(n_before),
            draft.finish_reason,
            self.timings,
            draft.logprobs_from(n_before),
        )

    def _step(self) -> str:
        """Choose one token; return the text that is certain with it."""
        self._interrupt.check()
        draft = self._draft
        is_first = draft.n_tokens == draft.n_prompt
        if is_first:
            draft.prepare()
        started = time.perf_counter()
        source = self._session if self._speculation is None else self._speculation
        logits, n_reused = source.evaluate(
            draft.tokens, on_progress=self._on_progress, check=self._interrupt.check
        )
        if is_first:
            self._n_reused = n_reused
            self._prompt_seconds = time.perf_counter() - started
            started = time.perf_counter()
        text = draft.take(logits[0])
        self._completion_seconds += time.perf_counter() - started
        return text
