"""From a prompt and the caller's options to a `Stream`.

Owns what the options mean for one model: which of its tokens end an answer, and
how its tokens become text.
"""

from __future__ import annotations

import copy
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from qllama.generation.beams import BeamEvaluator, BeamSearch
from qllama.generation.constraint import Constraint, ConstraintOptions
from qllama.generation.draft import Draft, Limits
from qllama.generation.expectation import MOST_GUESSES, StepCosts
from qllama.generation.guide import Guides
from qllama.generation.guided import GuidedGuesser
from qllama.generation.interrupt import Interrupt
from qllama.generation.logprobs import TokenLogprob
from qllama.generation.lookup import Guesser
from qllama.generation.loop import Stream
from qllama.generation.options import SamplingOptions, SamplingParams
from qllama.generation.results import Completion, FinishReason, Timings
from qllama.generation.sampling import Sampler
from qllama.generation.session import Progress, Session
from qllama.generation.speculation import Speculation
from qllama.generation.together import OpenEngine, Together
from qllama.generation.worker import Worker
from qllama.tokenizer.base import Tokenizer
from qllama.tokenizer.detokenizer import StreamingDetokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qllama.model.adapter import Adapter

__all__ = ["DraftOptions", "GenerationOptions", "Generator"]

_Answer = TypeVar("_Answer", Stream, Together, Interrupt)

# The OpenAI API's limit; a hundred would be as cheap.
_MOST_LOGPROBS = 20


class DraftOptions(SamplingOptions, ConstraintOptions, total=False):
    """What decides an answer, as keyword arguments; see `Generator.start`."""

    max_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Iterable[int]
    timeout: float | None
    logprobs: int | None
    draft_max: int


class GenerationOptions(DraftOptions, total=False):
    """Every option of an answer as keyword arguments; see `Generator.start`."""

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
    guesser : Guesser or None
        Guesses tokens to evaluate ahead.
    load_seconds : float
        Passed on to every answer's `Timings`.
    """

    def __init__(
        self,
        session: Session,
        lock: threading.Lock,
        tokenizer: Tokenizer,
        guesser: Guesser | None,
        *,
        load_seconds: float = 0.0,
    ) -> None:
        self._session = session
        self._lock = lock
        self._tokenizer = tokenizer
        self._guides = Guides(tokenizer)
        self._guesser = guesser
        self._step_costs = StepCosts()
        self._load_seconds = load_seconds
        self._starting = threading.Lock()
        self._answers: weakref.WeakSet[Stream | Together | Interrupt] = weakref.WeakSet()
        self._worker = Worker()

    def under(self, session: Session) -> Generator:
        """Return a generator of another session of the same slot; `cancel` reaches both's answers.

        Parameters
        ----------
        session : Session
        """
        other = copy.copy(self)
        other._session = session
        return other

    @property
    def adapter(self) -> Adapter | None:
        """What its answers are computed with."""
        return self._session.adapter

    def start(
        self,
        prompt: Sequence[int],
        *,
        on_progress: Progress | None = None,
        **options: Unpack[DraftOptions],
    ) -> Stream:
        """Return the answer that continues `prompt`; nothing is evaluated yet.

        Parameters
        ----------
        prompt : sequence of int
            Token ids, at least one.
        on_progress : callable, optional
            See `Stream`.
        **options
            max_tokens : int or None
                See `Limits`.
            stop : str, sequence of str or None
                Texts that end the answer, themselves left out. One that spells a control
                token stands for that token, which has no text of its own in an answer.
            stop_token_ids : iterable of int
                Tokens that end the answer, beside the model's own end tokens.
            timeout : float or None
                Seconds until the answer ends as it is.
            logprobs : int or None
                Note each token's log-probability, and those of so many likeliest tokens.
            response_format, json_schema, regex, choice, grammar
                What the answer must look like; see `Constraint.of`.
            draft_max : int
                Most tokens to guess and evaluate ahead; 0 is plain decoding.
            Others
                Fields of `SamplingParams`.

        Raises
        ------
        ContextLengthError
            When the prompt does not fit the context window.
        TypeError, ValueError
            When an option is unknown or out of range; names it.
        """
        draft = self._draft(prompt, **options)
        return self._noted(
            Stream(
                self._session,
                self._lock,
                draft,
                speculation=self._speculation(draft, options.get("draft_max", MOST_GUESSES)),
                timeout=options.get("timeout"),
                load_seconds=self._load_seconds,
                on_progress=on_progress,
                worker=self._worker.executor,
            )
        )

    def start_together(
        self,
        prompt: Sequence[int],
        n: int,
        open_engine: OpenEngine,
        *,
        on_progress: Progress | None = None,
        **options: Unpack[DraftOptions],
    ) -> Together:
        """Return `n` answers that continue `prompt`; nothing is evaluated yet.

        The first is the one that `start` would give; the seed of each is one more than
        that of the one before. Nothing is guessed: a step has enough tokens.

        Parameters
        ----------
        prompt : sequence of int
            Token ids, at least one.
        n : int
            At least 1.
        open_engine : callable
            See `Together`.
        on_progress, **options
            As in `start`, which says what is raised.
        """
        drafts = [self._draft(prompt, **options)]
        for i in range(1, n):
            options["seed"] = drafts[0].seed + i
            drafts.append(self._draft(prompt, **options))
        return self._noted(
            Together(
                self._session,
                self._lock,
                drafts,
                open_engine,
                timeout=options.get("timeout"),
                load_seconds=self._load_seconds,
                on_progress=on_progress,
            )
        )

    def beam_search(
        self,
        prompt: Sequence[int],
        search: BeamSearch,
        open_engine: Callable[[], AbstractContextManager[BeamEvaluator]],
        constraint: Constraint | None = None,
    ) -> list[Completion]:
        """Return what a beam search finds, best first.

        Parameters
        ----------
        prompt : sequence of int
            Token ids, at least one.
        search : BeamSearch
        open_engine : callable
            Returns a context of an engine with a slot a beam.
        constraint : Constraint, optional
            What they all must look like.
        """
        guide = None
        if constraint is not None:
            guide = self._guides.guide(constraint, search.ends, prompt[-1] if prompt else None)
            guide.prepare()
        interrupt = self._noted(Interrupt(None))
        tokens = np.array(prompt, np.int32)
        with self._lock, open_engine() as evaluator:
            started = time.perf_counter()
            logits, n_reused = self._session.evaluate(tokens)
            prompt_seconds = time.perf_counter() - started
            evaluator.write_cache(self._session.snapshot()[1])
            beams = search.run(logits[0], tokens.size, evaluator, interrupt.check, guide)
            seconds = time.perf_counter() - started - prompt_seconds
        found = []
        for beam in beams:
            n = len(beam.tokens)
            reason: FinishReason = "length" if n == search.max_tokens else "cancelled"
            written = beam.tokens
            if beam.has_ended:
                reason = "stop"
            if beam.tokens[-1] in search.ends:
                written = beam.tokens[:-1]
            stream = StreamingDetokenizer(self._tokenizer, skip_special=True, previous=prompt[-1])
            text = "".join(map(stream.push, written)) + stream.flush()
            timings = Timings(self._load_seconds, tokens.size, n_reused, prompt_seconds, n, seconds)
            noted = tuple(map(TokenLogprob, beam.tokens, beam.logprobs))
            found.append(Completion(text, beam.tokens, reason, 0, timings, noted))
        return found

    def _draft(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: Iterable[int] = (),
        timeout: float | None = None,
        logprobs: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        json_schema: Mapping[str, Any] | bool | str | None = None,
        regex: str | None = None,
        choice: Sequence[str] | None = None,
        grammar: str | Constraint | None = None,
        draft_max: int = 0,
        **sampling: Unpack[SamplingOptions],
    ) -> Draft:
        constraint = Constraint.of(
            response_format=response_format,
            json_schema=json_schema,
            regex=regex,
            choice=choice,
            grammar=grammar,
        )
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        ends = {*self._tokenizer.config.eos_token_ids, *stop_token_ids}
        ends.update(token for text in stops if (token := self._control_token(text)) is not None)
        if logprobs is not None and not 0 <= logprobs <= _MOST_LOGPROBS:
            raise ValueError(f"logprobs: expected None or 0 to {_MOST_LOGPROBS}, found {logprobs}")
        previous = prompt[-1] if prompt else None
        if draft_max < 0:
            raise ValueError(f"draft_max: expected an integer >= 0, found {draft_max}")
        return Draft(
            prompt,
            n_ctx=self._session.n_ctx,
            sampler=Sampler(
                SamplingParams(**sampling),
                self._tokenizer.vocab_size,
                lambda token: self._tokenizer.decode([token]),
            ),
            detokenizer=StreamingDetokenizer(
                self._tokenizer,
                skip_special=True,
                spelled=() if constraint is None else constraint.spelled,
                previous=previous,
            ),
            limits=Limits(max_tokens, stops, frozenset(ends), timeout),
            guide=None if constraint is None else self._guides.guide(constraint, ends, previous),
            n_logprobs=logprobs,
        )

    def _speculation(self, draft: Draft, n_most: int) -> Speculation | None:
        if self._guesser is None or n_most == 0:
            return None
        guesser = self._guesser
        if draft.guide is not None:
            guesser = GuidedGuesser(draft.guide, guesser)
        return Speculation(self._session, guesser, self._step_costs, draft.n_limit, n_most)

    def _noted(self, answer: _Answer) -> _Answer:
        """Have `cancel` find an answer as long as somebody holds it."""
        with self._starting:
            self._answers.add(answer)
        return answer

    def cancel(self) -> None:
        """Cancel every answer that is in the making or waits for its turn."""
        with self._starting:
            answers = list(self._answers)
        for answer in answers:
            answer.cancel()

    def close(self) -> None:
        """Let go of the worker's thread."""
        self._worker.close()

    def _control_token(self, text: str) -> int | None:
        """Return the control token that `text` spells, if it spells one."""
        ids = self._tokenizer.encode(text, add_special=False, parse_special=True)
        return ids[0] if len(ids) == 1 and self._tokenizer.is_special(ids[0]) else None
