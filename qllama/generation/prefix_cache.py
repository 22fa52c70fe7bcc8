"""Sequences that lost their slot, kept in memory for callers that go on with them.

Owns which are kept: the most recently used that fit a number of bytes. Knows neither
engine nor session; keys and values are bytes to it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["PrefixCache", "Saved", "n_common"]


class Saved(NamedTuple):
    """A sequence and its keys and values.

    Parameters
    ----------
    tokens : int32, (n_tokens,)
    cache : uint8, (2, n_layers, n_kv_heads, n_chunks, chunk_bytes)
        As `Engine.read_cache` returns it.
    adapter : bytes
        Digest of the adapter that computed them, empty without one: for another one they
        are of no use.
    """

    tokens: npt.NDArray[np.int32]
    cache: npt.NDArray[np.uint8]
    adapter: bytes = b""

    def n_shared(self, tokens: npt.NDArray[np.int32], adapter: bytes) -> int:
        """Count the leading tokens that this sequence spares who would evaluate `tokens`.

        Parameters
        ----------
        tokens : int32, (n_tokens,)
        adapter : bytes
            Digest of the adapter that would compute.
        """
        return n_common(self.tokens, tokens) if self.adapter == adapter else 0


class PrefixCache:
    """The most recently used sequences that fit `capacity` bytes.

    Parameters
    ----------
    capacity : int
        0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: list[Saved] = []  # least recently used first

    def wants(self, tokens: npt.NDArray[np.int32], n_bytes: int, adapter: bytes = b"") -> bool:
        """Whether a sequence is worth copying: it fits, and no one that is kept begins with it.

        Parameters
        ----------
        tokens : int32, (n_tokens,)
        n_bytes : int
            What its keys and values take.
        adapter : bytes
            As in `Saved`.
        """
        return n_bytes <= self._capacity and not any(
            saved.n_shared(tokens, adapter) == tokens.size for saved in self._kept
        )

    def put(self, saved: Saved) -> None:
        """Keep a sequence; those that it begins with, and then the oldest, make room for it."""
        self._kept = [
            kept
            for kept in self._kept
            if kept.n_shared(saved.tokens, saved.adapter) < kept.tokens.size
        ]
        self._kept.append(saved)
        while sum(kept.cache.nbytes for kept in self._kept) > self._capacity:
            del self._kept[0]

    def longest(self, tokens: npt.NDArray[np.int32], adapter: bytes = b"") -> Saved | None:
        """Return the sequence that shares most leading tokens, if any; it counts as used.

        Parameters
        ----------
        tokens : int32, (n_tokens,)
        adapter : bytes
            As in `Saved`.
        """
        shared = [saved.n_shared(tokens, adapter) for saved in self._kept]
        if not any(shared):
            return None
        self._kept.append(self._kept.pop(shared.index(max(shared))))
        return self._kept[-1]


def n_common(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """Count the leading tokens that two sequences share.

    Parameters
    ----------
    a, b : int32, (n_tokens,)
    """
    n = min(a.size, b.size)
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n
