"""Which tokens a slot of the engine holds, and how little must be evaluated next.

Owns the one promise that makes interruptions harmless: every token counted as
held is valid in the KV cache. Knows neither text nor sampling.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from qllama.errors import ContextLengthError
from qllama.generation.prefix_cache import PrefixCache, Saved, n_common

__all__ = ["Evaluated", "Evaluator", "Session"]

Progress = Callable[[int, int], None]

# Fewer tokens are evaluated in less time than a chunk of the cache is copied.
_FEWEST = 16


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
        check: Callable[[], None] | None = None,
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
        check : callable, optional
            Called often, between layers too; an exception it raises ends the evaluation.

        Returns
        -------
        float32, (n_tokens, vocab_size) or (1, vocab_size)
            An array of the caller's own.
        """

    def cache_bytes(self, n_positions: int) -> int:
        """Bytes of what `read_cache` returns."""

    def read_cache(self, n_positions: int, slot: int = 0) -> npt.NDArray[np.uint8]:
        """Copy the keys and values of the first positions; see `Engine.read_cache`."""

    def write_cache(self, chunks: npt.NDArray[np.uint8], slot: int = 0) -> None:
        """Put such a copy back; see `Engine.write_cache`."""


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
    cache_bytes : int
        Sequences that others displace are kept in up to so many bytes of memory, and
        come back when a caller goes on with them.
    """

    def __init__(self, evaluator: Evaluator, slot: int = 0, *, cache_bytes: int = 0) -> None:
        self._evaluator: Evaluator | None = evaluator
        self._slot = slot
        self._displaced = PrefixCache(cache_bytes)
        self._buffer = np.empty(evaluator.n_ctx, np.int32)
        self._n_held = 0

    def close(self) -> None:
        """Let go of the evaluator; a later evaluation raises ValueError."""
        self._evaluator = None
        self._displaced = PrefixCache(0)
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
        logits_from: int | None = None,
        on_progress: Progress | None = None,
        check: Callable[[], None] | None = None,
    ) -> Evaluated:
        """Bring the slot to hold exactly `tokens`.

        Parameters
        ----------
        tokens : int32, (n_tokens,)
            The whole sequence, at least one token.
        logits_from : int, optional
            Return logits of every token from this place on, which evaluates them again;
            without it, of the last token.
        on_progress : callable, optional
            Given new tokens done and new tokens in all between the engine's batches;
            an exception it raises ends the evaluation and leaves the session consistent.
        check : callable, optional
            Called often; the same holds of an exception it raises.

        Returns
        -------
        Evaluated
            `n_rows` is 1, the last token's, or `n_tokens - logits_from`.

        Raises
        ------
        ContextLengthError
            When the tokens do not fit the context window.
        ValueError
            When there are no tokens, or the session is closed.
        """
        evaluator = self._open()
        if tokens.size == 0:
            raise ValueError("expected at least one token, found none")
        if tokens.size > self.n_ctx:
            raise ContextLengthError(
                f"{tokens.size} tokens do not fit the context window of {self.n_ctx}: "
                "shorten the text, or load the model with a larger n_ctx"
            )
        # The last token is evaluated even if it is held: its logits are not kept.
        first = tokens.size - 1 if logits_from is None else logits_from
        n_reused = min(self._prepare(tokens, first), first)
        # An interrupt may strike anywhere below, so a token counts as held only
        # once the engine has said that it is.
        self._n_held = n_reused
        self._buffer[n_reused : tokens.size] = tokens[n_reused:]

        def on_chunk(done: int, total: int) -> None:
            self._n_held = n_reused + done
            if on_progress is not None:
                on_progress(done, total)

        logits = evaluator.evaluate(
            tokens[n_reused:].tolist(),
            position=n_reused,
            slot=self._slot,
            all_logits=logits_from is not None,
            on_progress=on_chunk,
            check=check,
        )
        self._n_held = tokens.size
        return Evaluated(logits if logits_from is None else logits[first - n_reused :], n_reused)

    def snapshot(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Return the tokens held, int32 (n_tokens,), and a copy of their keys and values.

        Raises
        ------
        ValueError
            When the session is closed.
        """
        cache = self._open().read_cache(self._n_held, self._slot)
        return self._buffer[: self._n_held].copy(), cache

    def restore(self, tokens: npt.NDArray[np.int32], cache: npt.NDArray[np.uint8]) -> None:
        """Hold what a snapshot held.

        Parameters
        ----------
        tokens : int32, (n_tokens,)
            At most `n_ctx`.
        cache : uint8, (2, n_layers, n_kv_heads, n_chunks, chunk_bytes)
            Of a session of the same model.

        Raises
        ------
        ValueError
            When the keys and values do not fit the engine, or the session is closed.
        """
        evaluator = self._open()
        self._n_held = 0
        evaluator.write_cache(cache, self._slot)
        self._buffer[: tokens.size] = tokens
        self._n_held = tokens.size

    def _open(self) -> Evaluator:
        if self._evaluator is None:
            raise ValueError("the model is closed")
        return self._evaluator

    def _prepare(self, tokens: npt.NDArray[np.int32], n_reusable: int) -> int:
        """Save what `tokens` displace, bring back what they continue; return what is in common."""
        held = self._buffer[: self._n_held]
        shared = n_common(held, tokens)
        found = None
        if n_reusable - shared >= _FEWEST:
            found = self._displaced.longest(tokens)
        if _is_worth_a_copy(held.size - shared, held.size):
            self._save(held)
        if found is not None:
            n_found = n_common(found.tokens, tokens)
            if _is_worth_a_copy(n_found - shared, found.tokens.size):
                self.restore(*found)
                return n_found
        return shared

    def _save(self, held: npt.NDArray[np.int32]) -> None:
        if self._displaced.wants(held, self._open().cache_bytes(held.size)):
            with contextlib.suppress(MemoryError):  # then it will be evaluated again
                self._displaced.put(Saved(*self.snapshot()))


def _is_worth_a_copy(n_gained: int, n_copied: int) -> bool:
    """Whether evaluating tokens takes longer than copying a sequence that has them.

    A token takes tens of times as long as its copy, and more the larger the model.
    """
    return n_gained >= max(_FEWEST, n_copied // 16)
