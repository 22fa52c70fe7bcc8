"""Texts as vectors: the hidden states of their tokens, pooled.

Owns how texts of all lengths share batches, and what is made of their states. Knows
neither text nor tokenizer.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_TOGETHER", "Pooling", "embed"]

Pooling = Literal["mean", "last", "cls"]

MOST_TOGETHER = 64
"""Texts that a batch may hold: with more, even short ones fill it."""

_Ids = npt.NDArray[np.int32]


class HiddenEvaluator(Protocol):
    """What embedding needs of an engine."""

    n_slots: int
    n_batch: int

    def hidden(self, tokens: _Ids, positions: _Ids, slots: _Ids) -> npt.NDArray[np.float32]:
        """Evaluate a ragged batch; see `Engine.hidden`."""


class _Part(NamedTuple):
    """Tokens `start` .. `stop` - 1 of a text, in a slot."""

    text: int
    slot: int
    start: int
    stop: int


def embed(
    engine: HiddenEvaluator,
    texts: Sequence[Sequence[int]],
    *,
    pooling: Pooling = "mean",
    normalize: bool = True,
) -> npt.NDArray[np.float32]:
    """Return one vector a text, the same bits whatever texts stand beside it.

    Parameters
    ----------
    engine : HiddenEvaluator
        Whose slots are free, each as long as the longest text.
    texts : sequence of sequence of int
        Token ids, at least one a text.
    pooling : str
        `mean` of all its tokens' states, or that of the `last`, which alone has seen the
        whole text, or of the first (`cls`).
    normalize : bool
        Divide each vector by its length.

    Returns
    -------
    float32, (n_texts, hidden_size)

    Raises
    ------
    ValueError
        When `pooling` is unknown.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(
            f"pooling: expected one of {', '.join(get_args(Pooling))}, found {pooling!r}"
        )
    states: dict[int, list[npt.NDArray[np.float32]]] = {}
    vectors = []
    for parts in _batches([len(text) for text in texts], engine.n_batch, engine.n_slots):
        tokens = [t for part in parts for t in texts[part.text][part.start : part.stop]]
        positions = [p for part in parts for p in range(part.start, part.stop)]
        slots = [part.slot for part in parts for _ in range(part.start, part.stop)]
        hidden = engine.hidden(*(np.array(x, np.int32) for x in (tokens, positions, slots)))
        for part in parts:
            rows, hidden = np.split(hidden, [part.stop - part.start])
            states.setdefault(part.text, []).append(rows)
            if part.stop == len(texts[part.text]):
                vectors.append(_pooled(np.concatenate(states.pop(part.text)), pooling))
    result = np.array(vectors)
    if normalize:
        lengths = np.sqrt((result.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        result = (result / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)
    return result


def _pooled(states: npt.NDArray[np.float32], pooling: Pooling) -> npt.NDArray[np.float32]:
    """Pool float32 (n_tokens, hidden_size)."""
    if pooling == "mean":
        mean: npt.NDArray[np.float64] = states.mean(axis=0, dtype=np.float64)
        return mean.astype(np.float32)
    one: npt.NDArray[np.float32] = states[-1 if pooling == "last" else 0]
    return one


def _batches(lengths: Sequence[int], n_batch: int, n_slots: int) -> Iterator[list[_Part]]:
    """Fill batches with texts in their order; a text that does not fit goes on in the next.

    The lowest slots are taken first: memory is committed for few.
    """
    free = list(range(n_slots))
    batch: list[_Part] = []
    room = n_batch
    for text, length in enumerate(lengths):
        if not free:
            yield from _emptied(batch, free, lengths)
            room = n_batch
        slot = heapq.heappop(free)
        start = 0
        while start < length:
            stop = min(length, start + room)
            batch.append(_Part(text, slot, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield from _emptied(batch, free, lengths)
                room = n_batch
    yield from _emptied(batch, free, lengths)


def _emptied(batch: list[_Part], free: list[int], lengths: Sequence[int]) -> Iterator[list[_Part]]:
    """Yield the batch, if it holds anything, and free the slots of texts that ended in it."""
    if batch:
        yield list(batch)
    for part in batch:
        if part.stop == lengths[part.text]:
            heapq.heappush(free, part.slot)
    batch.clear()
