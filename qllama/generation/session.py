"""Which tokens a slot of the engine holds, and how little must be evaluated next.

Owns the one promise that makes interruptions harmless: every token counted as
held is valid in the KV cache. Knows neither text nor sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from qllama.errors import ContextLengthError

__all__ = ["Evaluated", "Evaluator", "Session"]

Progress = Callable[[int, int], None]


class Evaluator(Protocol):
    """What a session needs of an engine."""

    @property
    def n_ctx(self) -> int:
        """Positions a slot can hold."""

    def evaluate(
        self,
        tokens: list[int],
        *,
        position: int,
        slot: int = 0,
        all_logits: bool = False,
        on_progress: Progress | None = None,
    ) -> npt.NDArray[np.float32]:
        """Evaluate `tokens` at `position` and on, forgetting what the slot held there.

        Parameters
        ----------
        tokens : list of int
            At least one.
        position : int
            Of the first token; everything before it is held already.
        slot : int
            The sequence to extend.
        all_logits : bool
            Whether every token's logits are wanted, or the last one's only.
        on_progress : callable, optional
            Given tokens done and tokens in all between batches, when those done are in
            the KV cache for good; an exception it raises ends the evaluation there.

        Returns
        -------
        float32, (n_tokens, vocab_size) or (1, vocab_size)
            An array of the caller's own.
        """


class Evaluated(NamedTuple):
    """Logits, and what they cost.

    Parameters
    ----------
    logits : float32, (n_rows, vocab_size)
        Of the last token, or of all.
    n_reused : int
        Leading tokens that were held already.
    """

    logits: npt.NDArray[np.float32]
    n_reused: int


class Session:
    """The tokens in one slot, reused by longest common prefix.

    A caller always hands over its whole sequence, and the session evaluates what
    the slot does not hold yet. Callers that take turns therefore never see each
    other's tokens. Reuse changes no result: the engine's KV cache is bit-identical
    however the tokens were split into evaluations.

    Not thread-safe: the owner holds a lock around every call.

    Parameters
    ----------
    evaluator : Evaluator
        The engine.
    slot : int
        The slot of it that belongs to this session.
    """

    def __init__(self, evaluator: Evaluator, slot: int = 0) -> None:
        self._evaluator: Evaluator | None = evaluator
        self._slot = slot
        self._buffer = np.empty(evaluator.n_ctx, np.int32)
        self._n_held = 0

    def close(self) -> None:
        """Let go of the evaluator; a later evaluation raises ValueError."""
        self._evaluator = None
        self._n_held = 0

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._evaluator is None

    @property
    def n_ctx(self) -> int:
        """Tokens that fit."""
        return self._buffer.size

    @property
    def held(self) -> list[int]:
        """The tokens whose keys and values are valid in the slot."""
        tokens: list[int] = self._buffer[: self._n_held].tolist()
        return tokens

    def evaluate(
        self,
        tokens: npt.NDArray[np.int32],
        *,
        all_logits: bool = False,
        on_progress: Progress | None = None,
    ) -> Evaluated:
        """Bring the slot to hold exactly `tokens`.

        Parameters
        ----------
        tokens : int32, (n_tokens,)
            The whole sequence, at least one token.
        all_logits : bool
            Return logits of every token, which evaluates all of them again.
        on_progress : callable, optional
            Given new tokens done and new tokens in all between the engine's batches;
            an exception it raises ends the evaluation and leaves the session consistent.

        Returns
        -------
        Evaluated
            `n_rows` is 1, the last token's, or `n_tokens` with `all_logits`.

        Raises
        ------
        ContextLengthError
            When the tokens do not fit the context window.
        ValueError
            When there are no tokens, or the session is closed.
        """
        if self._evaluator is None:
            raise ValueError("the model is closed")
        if tokens.size == 0:
            raise ValueError("expected at least one token, found none")
        if tokens.size > self.n_ctx:
            raise ContextLengthError(
                f"{tokens.size} tokens do not fit the context window of {self.n_ctx}: "
                "shorten the text, or load the model with a larger n_ctx"
            )
        # The last token is evaluated even if it is held: its logits are not kept.
        n_reused = 0 if all_logits else min(self._common_prefix(tokens), tokens.size - 1)
        # An interrupt may strike anywhere below, so a token counts as held only
        # once the engine has said that it is.
        self._n_held = n_reused
        self._buffer[n_reused : tokens.size] = tokens[n_reused:]

        def on_chunk(done: int, total: int) -> None:
            self._n_held = n_reused + done
            if on_progress is not None:
                on_progress(done, total)

        logits = self._evaluator.evaluate(
            tokens[n_reused:].tolist(),
            position=n_reused,
            slot=self._slot,
            all_logits=all_logits,
            on_progress=on_chunk,
        )
        self._n_held = tokens.size
        return Evaluated(logits, n_reused)

    def _common_prefix(self, tokens: npt.NDArray[np.int32]) -> int:
        n = min(self._n_held, tokens.size)
        differs = self._buffer[:n] != tokens[:n]
        return int(differs.argmax()) if differs.any() else n
