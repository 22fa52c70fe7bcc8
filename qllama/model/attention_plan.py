"""How a batch's attention is cut into pieces of work for the threads.

Bits do not depend on it (`kernels.attention`), so it is free to suit the batch: a
prompt's tokens are taken many at a time, which reads each key and value once for
all of them, and a long text that is alone, or longer than the others, is split by
chunks of its positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qllama.kernels.kv_layout import CHUNK

__all__ = ["MAX_QUERIES", "TASK", "AttentionPlan"]

#: Queries of a task on one key/value head, at most.
MAX_QUERIES = 192
#: Fields of a task, int32 each: its tokens' first and count; its chunk (-1 is all that
#: they see); and of a split one its first chunk and their count, the place of its first
#: partial and that of its counter of arrivals.
TASK = ("first_token", "n_tokens", "chunk", "first_chunk", "n_chunks", "partial", "arrivals")

# Fewer make a token block's pass over the cache too dear.
_MIN_QUERIES = 12
# Pieces of work a thread that even out what the last ones take.
_PIECES_PER_THREAD = 4
_SPLIT_TOKENS = 8


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What the plan of a batch depends on beside the batch.

    Parameters
    ----------
    n_kv_heads, repeats : int
        Key/value heads, and query heads that share each.
    sliding_window : int or None
    capacity : int
        Positions of a sequence, a multiple of CHUNK.
    n_threads : int
    """

    n_kv_heads: int
    repeats: int
    sliding_window: int | None
    capacity: int
    n_threads: int

    @property
    def max_queries(self) -> int:
        """Queries of one task at most."""
        return max(MAX_QUERIES, self.repeats)

    @property
    def max_partials(self) -> int:
        """Partials that all split tasks take at most: eight tokens of full length."""
        heads = self.n_kv_heads * self.repeats
        return _SPLIT_TOKENS * heads * (self.capacity // CHUNK)

    @property
    def max_arrivals(self) -> int:
        """Counters that all split tasks take at most: each has two chunks or more."""
        return self.max_partials // 2

    def tasks(self, positions: Sequence[int], slots: Sequence[int]) -> list[tuple[int, ...]]:
        """Cut a batch; every task is done for each key/value head.

        Parameters
        ----------
        positions, slots : sequence of int, (n_tokens,)
            As in `Engine.forward`.

        Returns
        -------
        list of tuple of int
            Fields as in `TASK`; what takes longest comes first.
        """
        blocks = []
        for first, count in self._blocks(slots):
            seen = 0
            if self.sliding_window is not None:
                seen = max(positions[first] + 1 - self.sliding_window, 0)
            start, end = seen // CHUNK, positions[first + count - 1] // CHUNK + 1
            groups = -(-count * self.repeats // _MIN_QUERIES)
            blocks.append((groups * (end - start), first, count, start, end - start))
        blocks.sort(reverse=True)
        tasks: list[tuple[int, ...]] = []
        partials = arrivals = 0
        limit = self.n_kv_heads * sum(block[0] for block in blocks)
        for cost, first, count, start, n_chunks in blocks:
            needed = n_chunks * count * self.n_kv_heads * self.repeats
            is_split = (
                n_chunks > 1
                and cost * _PIECES_PER_THREAD * self.n_threads > limit
                and partials + needed <= self.max_partials
            )
            if not is_split:
                tasks.append((first, count, -1, 0, 0, 0, 0))
                continue
            chunks = range(start, start + n_chunks)
            tasks += [(first, count, c, start, n_chunks, partials, arrivals) for c in chunks]
            partials += needed
            arrivals += self.n_kv_heads
        return tasks

    def _blocks(self, slots: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(first token, count) of tokens of one slot that are handled together."""
        n = len(slots)
        edges = [0, *(i for i in range(1, n) if slots[i] != slots[i - 1]), n]
        share = -(-n * self.n_kv_heads // (_PIECES_PER_THREAD * self.n_threads))
        size = max(min(share, self.max_queries // self.repeats), -(-_MIN_QUERIES // self.repeats))
        for start, end in pairwise(edges):
            for first in range(start, end, size):
                yield first, min(size, end - first)
