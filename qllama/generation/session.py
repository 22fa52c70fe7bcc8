"""Which tokens a slot of the engine holds, and how little must be evaluated next.

Owns the one promise that makes interruptions harmless: every token counted as
held is valid in the KV cache. Knows neither text nor sampling.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from qllama.errors import ContextLengthError
from qllama.generation.prefix_cache import PrefixCache, Saved, n_common

if TYPE_CHECKING:
    from qllama.model.adapter import Adapter

__all__ = ["Evaluated", "Evaluator", "Session"]

Progress = Callable[[int, int], None]

# Fewer tokens are evaluated in less time than a chunk of the cache is copied; so few are
# guessed ahead (`expectation`) that those that turn out wrong are never saved.
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

    def adapt(self, adapter: Adapter | None) -> None:
        """Compute with an adapter from now on; see `Engine.adapt`."""


@dataclass
class _Slot:
    """What the sessions of one slot share: of all of them, one's tokens are in it.

    Parameters
    ----------
    evaluator : Evaluator or None
        None when it is closed.
    number : int
    displaced : PrefixCache
    tokens : int32, (n_ctx,)
        The first `n_held` of them are valid in the slot.
    n_held : int
    n_changes : int
        How often somebody began to change what it holds.
    adapter : bytes or None
        Digest of what computes, empty without an adapter; None while that changes.
    """

    evaluator: Evaluator | None
    number: int
    displaced: PrefixCache
    tokens: npt.NDArray[np.int32]
    n_held: int = 0
    n_changes: int = 0
    adapter: bytes | None = b""

    @property
    def held(self) -> npt.NDArray[np.int32]:
        """The valid ones."""
        return self.tokens[: self.n_held]


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
    however the tokens were split into evaluations. What one adapter computed is never
    reused under another.

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
        tokens = np.empty(evaluator.n_ctx, np.int32)
        self._slot = _Slot(evaluator, slot, PrefixCache(cache_bytes), tokens)
        self._adapter: Adapter | None = None

    def under(self, adapter: Adapter | None) -> Session:
        """Return a session of the same slot that evaluates with an adapter, or without.

        Parameters
        ----------
        adapter : Adapter or None
            Of the engine's model.
        """
        other = copy.copy(self)
        other._adapter = adapter
        return other

    @property
    def adapter(self) -> Adapter | None:
        """What it evaluates with."""
        return self._adapter

    def close(self) -> None:
        """Let go of the evaluator; a later evaluation raises ValueError."""
        self._slot.evaluator = None
        self._slot.displaced = PrefixCache(0)
        self._slot.n_held = 0

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._slot.evaluator is None

    @property
    def n_ctx(self) -> int:
        """Tokens that fit."""
        return self._slot.tokens.size

    @property
    def held(self) -> list[int]:
        """The tokens whose keys and values are valid in the slot."""
        tokens: list[int] = self._held.tolist()
        return tokens

    @property
    def n_changes(self) -> int:
        """Grows with every change of what the slot holds: who comes again sees if others did."""
        return self._slot.n_changes

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
        self._slot.n_changes += 1
        # The last token is evaluated even if it is held: its logits are not kept.
        first = tokens.size - 1 if logits_from is None else logits_from
        n_reused = min(self._prepare(tokens, first), first)
        # An interrupt may strike anywhere below, so a token counts as held only
        # once the engine has said that it is.
        slot = self._slot
        slot.n_held = n_reused
        slot.tokens[n_reused : tokens.size] = tokens[n_reused:]

        def on_chunk(done: int, total: int) -> None:
            slot.n_held = n_reused + done
            if on_progress is not None:
                on_progress(done, total)

        logits = evaluator.evaluate(
            tokens[n_reused:].tolist(),
            position=n_reused,
            slot=slot.number,
            all_logits=logits_from is not None,
            on_progress=on_chunk,
            check=check,
        )
        slot.n_held = tokens.size
        return Evaluated(logits if logits_from is None else logits[first - n_reused :], n_reused)

    def snapshot(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Return the tokens held, int32 (n_tokens,), and a copy of their keys and values.

        Raises
        ------
        ValueError
            When the session is closed.
        """
        held = self._held
        return held.copy(), self._open().read_cache(held.size, self._slot.number)

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
        self._take_slot()
        slot = self._slot
        slot.n_held = 0
        slot.n_changes += 1
        evaluator.write_cache(cache, slot.number)
        slot.tokens[: tokens.size] = tokens
        slot.n_held = tokens.size

    def _open(self) -> Evaluator:
        if self._slot.evaluator is None:
            raise ValueError("the model is closed")
        return self._slot.evaluator

    @property
    def _digest(self) -> bytes:
        return b"" if self._adapter is None else self._adapter.digest

    @property
    def _held(self) -> npt.NDArray[np.int32]:
        """What the slot holds for this session's adapter, int32 (n_tokens,)."""
        is_own = self._slot.adapter == self._digest
        return self._slot.held if is_own else self._slot.tokens[:0]

    def _take_slot(self) -> None:
        """Have the engine compute with this session's adapter; what it held is gone then."""
        slot = self._slot
        if slot.adapter != self._digest:
            slot.n_held = 0
            slot.adapter = None
            self._open().adapt(self._adapter)
            slot.adapter = self._digest

    def _prepare(self, tokens: npt.NDArray[np.int32], n_reusable: int) -> int:
        """Save what `tokens` displace, bring back what they continue; return what is in common."""
        shared = n_common(self._held, tokens)
        found = None
        if n_reusable - shared >= _FEWEST:
            found = self._slot.displaced.longest(tokens, self._digest)
        held = self._slot.held
        if _is_worth_a_copy(held.size - shared, held.size):
            self._save()
        self._take_slot()
        if found is not None:
            n_found = n_common(found.tokens, tokens)
            if _is_worth_a_copy(n_found - shared, found.tokens.size):
                self.restore(found.tokens, found.cache)
                return n_found
        return shared

    def _save(self) -> None:
        """Keep what the slot holds, whatever adapter computed it."""
        slot, evaluator = self._slot, self._open()
        held, adapter = slot.held, slot.adapter
        assert adapter is not None, "a slot that holds tokens has computed them"
        if slot.displaced.wants(held, evaluator.cache_bytes(held.size), adapter):
            with contextlib.suppress(MemoryError):  # then it will be evaluated again
                cache = evaluator.read_cache(held.size, slot.number)
                slot.displaced.put(Saved(held.copy(), cache, adapter))


def _is_worth_a_copy(n_gained: int, n_copied: int) -> bool:
    """Whether evaluating tokens takes longer than copying a sequence that has them.

    A token takes tens of times as long as its copy, and more the larger the model.
    """
    return n_gained >= max(_FEWEST, n_copied // 16)
