"""One answer in the making: takes logits, chooses tokens, and knows when it ends.

Owns the sequence of tokens, and what of their text is certain. Knows nothing of how
logits come about: a stream evaluates one draft, a batch several together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qllama.errors import ContextLengthError
from qllama.generation.guide import Guide
from qllama.generation.logprobs import TokenLogprob, token_logprob
from qllama.generation.results import FinishReason
from qllama.generation.sampling import Sampler
from qllama.generation.stop import StopMatcher

__all__ = ["Detokenizer", "Draft", "Limits"]


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
    timeout : float or None
        Seconds until the answer ends as it is, with those that it waits for its turn.

    Raises
    ------
    ValueError
        When `max_tokens` is below -1 or `timeout` below 0.
    """

    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < -1:
            raise ValueError(
                f"max_tokens: expected None or an integer >= -1, found {self.max_tokens}"
            )
        if self.timeout is not None and not self.timeout >= 0:
            raise ValueError(f"timeout: expected None or seconds >= 0, found {self.timeout}")


class Draft:
    """An answer in the making.

    Parameters
    ----------
    prompt : sequence of int
        Token ids, at least one.
    n_ctx : int
        Tokens that the context window holds, prompt and answer together.
    sampler : Sampler
        Chooses tokens.
    detokenizer : Detokenizer
        Fresh, as are the sampler's random numbers.
    limits : Limits
        What ends the answer.
    guide : Guide, optional
        What the answer must look like; fresh.
    n_logprobs : int, optional
        Note each token's log-probability, and those of so many likeliest tokens.

    Attributes
    ----------
    n_prompt, n_tokens : int
        Tokens of the prompt; of it and the answer so far.
    n_limit : int
        Most tokens of both.
    guide : Guide or None
        As given; has followed the answer so far.
    finish_reason : str or None
        Why the answer ended; None while it goes on.

    Raises
    ------
    ContextLengthError
        When the prompt does not fit the context window.
    ValueError
        When the prompt is empty.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        n_ctx: int,
        sampler: Sampler,
        detokenizer: Detokenizer,
        limits: Limits,
        guide: Guide | None = None,
        n_logprobs: int | None = None,
    ) -> None:
        if not prompt:
            raise ValueError("prompt: expected at least one token, found none")
        if len(prompt) > n_ctx:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, more than the context window of "
                f"{n_ctx}: shorten it, or load the model with a larger one (n_ctx, -c)"
            )
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._stops = StopMatcher(limits.stops)
        self._stop_token_ids = limits.stop_token_ids
        self.guide = guide
        self._n_logprobs = n_logprobs
        self._logprobs: list[TokenLogprob] = []
        self.n_prompt = self.n_tokens = len(prompt)
        self.n_limit = n_ctx
        if limits.max_tokens is not None and limits.max_tokens >= 0:
            self.n_limit = min(n_ctx, self.n_prompt + limits.max_tokens)
        # Prompt and answer: the first n_tokens elements are set.
        self._tokens = np.empty(self.n_limit, np.int32)
        self._tokens[: self.n_prompt] = prompt
        self.finish_reason: FinishReason | None = None

    @property
    def seed(self) -> int:
        """Seed of the random draws, also when it was chosen at random."""
        return self._sampler.seed

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Prompt and answer so far, int32 (n_tokens,): a view."""
        return self._tokens[: self.n_tokens]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token chosen so far."""
        return self.chosen_from(self.n_prompt)

    def chosen_from(self, place: int) -> tuple[int, ...]:
        """Return the tokens from place `place` of the sequence on."""
        return tuple(self._tokens[place : self.n_tokens].tolist())

    def logprobs_from(self, place: int) -> tuple[TokenLogprob, ...] | None:
        """Return what was noted of the tokens from `place` on; None where nothing is noted."""
        if self._n_logprobs is None:
            return None
        return tuple(self._logprobs[place - self.n_prompt :])

    def prepare(self) -> None:
        """Do what takes time before the first token, and needs no logits.

        Raises
        ------
        ValueError
            When the guide's constraint is malformed.
        """
        if self.guide is not None:
            self.guide.prepare()

    def take(self, logits: npt.NDArray[np.float32]) -> str:
        """Choose the next token; return the text that is certain with it.

        Parameters
        ----------
        logits : float32, (n_logits,)
            The model's output after the last token.

        Raises
        ------
        SamplingError, ValueError
            As `Sampler.sample`.
        """
        if self.n_tokens == self.n_limit:  # there is no room for a first one
            return self.end("length")
        allowed = None if self.guide is None else self.guide.allowed()
        token = self._sampler.sample(logits, self.tokens, allowed)
        if self._n_logprobs is not None:
            self._logprobs.append(token_logprob(logits, token, self._n_logprobs))
        self._tokens[self.n_tokens] = token
        self.n_tokens += 1
        if token in self._stop_token_ids:
            return self.end("stop")
        is_whole = self.guide is not None and self.guide.accept(token)
        text = self._stops.push(self._detokenizer.push(token))
        if self._stops.found:
            self.finish_reason = "stop"
        elif is_whole:
            text += self.end("stop")
        elif self.n_tokens == self.n_limit:
            text += self.end("length")
        return text

    def end(self, reason: FinishReason) -> str:
        """End the answer for `reason`; return the text withheld until now."""
        self.finish_reason = reason
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()
