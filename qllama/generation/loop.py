"""The generation loop: evaluate, choose a token, pass its text on, until it ends.

Owns when an answer ends. Gets its prompt as token ids, and knows neither files
nor chat templates.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qllama.errors import ContextLengthError
from qllama.generation.results import Completion, FinishReason, Piece, Timings
from qllama.generation.sampling import Sampler
from qllama.generation.session import Progress, Session
from qllama.generation.stop import StopMatcher

__all__ = ["Detokenizer", "Limits", "Stream"]


class Detokenizer(Protocol):
    """Turns tokens into text, one at a time."""

    def push(self, token_id: int) -> str:
        """Return the text that is complete with `token_id`; never half a character."""

    def flush(self) -> str:
        """Return the text of what never became a whole character."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends an answer.

    Parameters
    ----------
    max_tokens : int or None
        Most tokens to choose; None and -1 go on until the context window is full.
    stops : tuple of str
        Texts that end the answer and do not belong to it.
    stop_token_ids : frozenset of int
        Tokens that end the answer, the model's own end tokens included.

    Raises
    ------
    ValueError
        When `max_tokens` is below -1.
    """

    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < -1:
            raise ValueError(
                f"max_tokens: expected None or an integer >= -1, found {self.max_tokens}"
            )


class _Cancelled(Exception):
    """Unwinds an evaluation that `Stream.cancel` interrupts."""


class Stream(Iterator[Piece]):
    """An answer as it is made: iterate over it for its pieces.

    Every step hands its whole sequence to the session, so a stream stays right when
    other calls use the session between two pieces; it only costs evaluating again
    what they displaced. Nothing is held between steps: a stream may be abandoned at
    any time, and an exception out of it (a KeyboardInterrupt, say) leaves the session
    consistent.

    Parameters
    ----------
    session : Session
        Evaluates; used only under `lock`.
    lock : threading.Lock
        Guards the session.
    prompt : sequence of int
        Token ids, at least one.
    sampler : Sampler
        Chooses tokens.
    detokenizer : Detokenizer
        Fresh, as are the sampler's random numbers.
    limits : Limits
        What ends the answer.
    load_seconds : float
        Passed on to `Timings`.
    on_progress : callable, optional
        Given tokens done and to do between the batches of a long evaluation: the
        prompt's, or that of tokens which another call displaced.

    Raises
    ------
    ContextLengthError
        When the prompt does not fit the context window.
    ValueError
        When the prompt is empty.
    """

    def __init__(
        self,
        session: Session,
        lock: threading.Lock,
        prompt: Sequence[int],
        *,
        sampler: Sampler,
        detokenizer: Detokenizer,
        limits: Limits,
        load_seconds: float = 0.0,
        on_progress: Progress | None = None,
    ) -> None:
        if not prompt:
            raise ValueError("prompt: expected at least one token, found none")
        if len(prompt) > session.n_ctx:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, more than the context window of "
                f"{session.n_ctx}: shorten it, or load the model with a larger n_ctx"
            )
        self._session = session
        self._lock = lock
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._stops = StopMatcher(limits.stops)
        self._stop_token_ids = limits.stop_token_ids
        self._load_seconds = load_seconds
        self._on_progress = on_progress

        self._n_prompt = self._n_tokens = len(prompt)
        self._n_limit = session.n_ctx
        if limits.max_tokens is not None and limits.max_tokens >= 0:
            self._n_limit = min(session.n_ctx, self._n_prompt + limits.max_tokens)
        # Prompt and answer: the first _n_tokens elements are set.
        self._tokens = np.empty(self._n_limit, np.int32)
        self._tokens[: self._n_prompt] = prompt

        self._cancelled = False
        self._finish_reason: FinishReason | None = None
        self._n_reused = 0
        self._prompt_seconds = 0.0
        self._completion_seconds = 0.0

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None while it goes on."""
        return self._finish_reason

    @property
    def seed(self) -> int:
        """Seed of the random draws, also when it was chosen at random."""
        return self._sampler.seed

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token chosen so far."""
        return tuple(self._tokens[self._n_prompt : self._n_tokens].tolist())

    @property
    def timings(self) -> Timings:
        """What the answer took so far."""
        return Timings(
            load_seconds=self._load_seconds,
            prompt_tokens=self._n_prompt,
            reused_tokens=self._n_reused,
            prompt_seconds=self._prompt_seconds,
            completion_tokens=self._n_tokens - self._n_prompt,
            completion_seconds=self._completion_seconds,
        )

    def cancel(self) -> None:
        """End the answer at the next step or prompt chunk; from any thread.

        The next piece is the last one, its `finish_reason` is `cancelled`.
        """
        self._cancelled = True

    def __next__(self) -> Piece:
        with self._lock:
            return self._advance()

    def completion(self) -> Completion:
        """Take all remaining pieces, undisturbed by other calls, as one text."""
        text = []
        with self._lock:
            while self._finish_reason is None:
                text.append(self._advance())
        assert self._finish_reason is not None
        return Completion(
            "".join(text), self.token_ids, self._finish_reason, self.seed, self.timings
        )

    def _advance(self) -> Piece:
        """Step until there is text to pass on or the answer has ended."""
        if self._finish_reason is not None:
            raise StopIteration
        n_before = self._n_tokens
        text = ""
        while not text and self._finish_reason is None:
            try:
                text = self._step()
            except _Cancelled:
                text = self._finish("cancelled")
        return Piece(
            text,
            tuple(self._tokens[n_before : self._n_tokens].tolist()),
            self._finish_reason,
            self.timings if self._finish_reason is not None else None,
        )

    def _step(self) -> str:
        """Choose one token; return the text that is certain with it."""
        self._check_cancelled()
        is_first = self._n_tokens == self._n_prompt
        started = time.perf_counter()
        logits, n_reused = self._session.evaluate(
            self._tokens[: self._n_tokens], on_progress=self._on_chunk
        )
        if is_first:
            self._n_reused = n_reused
            self._prompt_seconds = time.perf_counter() - started
            started = time.perf_counter()
            if self._n_tokens == self._n_limit:
                return self._finish("length")
        token = self._sampler.sample(logits[0], self._tokens[: self._n_tokens])
        self._tokens[self._n_tokens] = token
        self._n_tokens += 1
        text = self._take(token)
        self._completion_seconds += time.perf_counter() - started
        return text

    def _take(self, token: int) -> str:
        """Return the text that is certain with `token`, and see whether it is the last."""
        if token in self._stop_token_ids:
            return self._finish("stop")
        text = self._stops.push(self._detokenizer.push(token))
        if self._stops.found:
            self._finish_reason = "stop"
        elif self._n_tokens == self._n_limit:
            text += self._finish("length")
        return text

    def _finish(self, reason: FinishReason) -> str:
        """End the answer for `reason`; return the text withheld until now."""
        self._finish_reason = reason
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise _Cancelled

    def _on_chunk(self, done: int, total: int) -> None:
        self._check_cancelled()
        if self._on_progress is not None:
            self._on_progress(done, total)
