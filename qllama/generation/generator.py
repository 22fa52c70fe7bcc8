"""From a prompt and the caller's options to a `Stream`.

Owns what the options mean for one model: which of its tokens end an answer, and
how its tokens become text.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qllama.generation.draft import Draft, Limits
from qllama.generation.loop import Stream
from qllama.generation.options import SamplingOptions, SamplingParams
from qllama.generation.sampling import Sampler
from qllama.generation.session import Progress, Session
from qllama.tokenizer.base import Tokenizer
from qllama.tokenizer.detokenizer import StreamingDetokenizer

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from typing_extensions import Unpack

__all__ = ["GenerationOptions", "Generator"]

# The OpenAI API's limit; a hundred would be as cheap.
_MOST_LOGPROBS = 20


class GenerationOptions(SamplingOptions, total=False):
    """Every option of an answer as keyword arguments; see `Generator.start`."""

    max_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Iterable[int]
    timeout: float | None
    logprobs: int | None
    on_progress: Progress | None


class Generator:
    """Starts answers of one model.

    Parameters
    ----------
    session : Session
        Evaluates the answers, one step at a time.
    lock : threading.Lock
        Guards the session.
    tokenizer : Tokenizer
        The model's.
    load_seconds : float
        Passed on to every answer's `Timings`.
    """

    def __init__(
        self,
        session: Session,
        lock: threading.Lock,
        tokenizer: Tokenizer,
        *,
        load_seconds: float = 0.0,
    ) -> None:
        self._session = session
        self._lock = lock
        self._tokenizer = tokenizer
        self._load_seconds = load_seconds
        self._starting = threading.Lock()
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._executor: Executor | None = None

    def start(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: Iterable[int] = (),
        timeout: float | None = None,
        logprobs: int | None = None,
        on_progress: Progress | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Return the answer that continues `prompt`; nothing is evaluated yet.

        Parameters
        ----------
        prompt : sequence of int
            Token ids, at least one.
        max_tokens : int or None
            See `Limits`.
        stop : str, sequence of str or None
            Texts that end the answer, themselves left out. One that spells a control
            token stands for that token, which has no text of its own in an answer.
        stop_token_ids : iterable of int
            Tokens that end the answer, beside the model's own end tokens.
        timeout : float, optional
            Seconds until the answer ends as it is.
        logprobs : int, optional
            Note each token's log-probability, and those of so many likeliest tokens.
        on_progress : callable, optional
            See `Stream`.
        **sampling
            Fields of `SamplingParams`.

        Raises
        ------
        ContextLengthError
            When the prompt does not fit the context window.
        TypeError, ValueError
            When an option is unknown or out of range; names it.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        ends = {*self._tokenizer.config.eos_token_ids, *stop_token_ids}
        ends.update(token for text in stops if (token := self._control_token(text)) is not None)
        if logprobs is not None and not 0 <= logprobs <= _MOST_LOGPROBS:
            raise ValueError(f"logprobs: expected None or 0 to {_MOST_LOGPROBS}, found {logprobs}")
        limits = Limits(max_tokens, stops, frozenset(ends), timeout)
        draft = Draft(
            prompt,
            n_ctx=self._session.n_ctx,
            sampler=Sampler(
                SamplingParams(**sampling),
                self._tokenizer.vocab_size,
                lambda token: self._tokenizer.decode([token]),
            ),
            detokenizer=StreamingDetokenizer(
                self._tokenizer, skip_special=True, previous=prompt[-1] if prompt else None
            ),
            limits=limits,
            n_logprobs=logprobs,
        )
        stream = Stream(
            self._session,
            self._lock,
            draft,
            timeout=timeout,
            load_seconds=self._load_seconds,
            on_progress=on_progress,
            worker=self._worker,
        )
        with self._starting:
            self._streams.add(stream)
        return stream

    def cancel(self) -> None:
        """Cancel every answer that is in the making or waits for its turn."""
        with self._starting:
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()

    def close(self) -> None:
        """Let go of the worker's thread."""
        with self._starting:
            if self._executor is not None:
                self._executor.shutdown(wait=False)
                self._executor = None

    def _worker(self) -> Executor:
        """Return the one thread that computes for coroutines: they queue without blocking."""
        from concurrent.futures import ThreadPoolExecutor

        with self._starting:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="qllama")
            return self._executor

    def _control_token(self, text: str) -> int | None:
        """Return the control token that `text` spells, if it spells one."""
        ids = self._tokenizer.encode(text, add_special=False, parse_special=True)
        return ids[0] if len(ids) == 1 and self._tokenizer.is_special(ids[0]) else None
