"""Beam search: the likeliest answers, not a drawn one.

Owns which sequences are kept, and in which slots of a batch's engine they live.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from qllama.generation.filters import top_k
from qllama.generation.guide import Guide, masked
from qllama.generation.interrupt import EndedEarly
from qllama.generation.logprobs import log_sum_exp
from qllama.generation.together import BatchEvaluator

__all__ = ["Beam", "BeamEvaluator", "BeamSearch"]


class BeamEvaluator(BatchEvaluator, Protocol):
    """What beams need of an engine."""

    def read_cache(self, n_positions: int, slot: int = 0) -> npt.NDArray[np.uint8]:
        """Copy a slot's keys and values; see `Engine.read_cache`."""


class Beam(NamedTuple):
    """A sequence and how likely it is.

    Parameters
    ----------
    tokens : tuple of int
        What follows the prompt.
    logprobs : tuple of float
        Natural logarithms of their probabilities.
    slot : int
        Where its keys and values are, of all tokens but the last.
    guide : Guide or None
        What it may go on with.
    has_ended : bool
        Whether it may not go on.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    slot: int
    guide: Guide | None = None
    has_ended: bool = False

    @property
    def logprob(self) -> float:
        """Of the sequence."""
        return math.fsum(self.logprobs)


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """Keeps the `n_beams` likeliest sequences of every length.

    Parameters
    ----------
    n_beams : int
    max_tokens : int
        Longest sequence.
    ends : frozenset of int
        Tokens that end a sequence, themselves part of it.
    length_penalty : float
        Sequences are compared by their logarithm divided by length ** length_penalty: 0
        favours short ones.
    vocab_size : int
        Only ids below it are chosen.

    References
    ----------
    Freitag and Al-Onaizan 2017, Beam Search Strategies for Neural Machine Translation,
    arXiv:1702.01806; the length penalty as in Hugging Face's `generate`.
    """

    n_beams: int
    max_tokens: int
    ends: frozenset[int]
    length_penalty: float
    vocab_size: int

    def score(self, beam: Beam) -> float:
        """Return what sequences are compared by."""
        return beam.logprob / math.pow(len(beam.tokens), self.length_penalty)

    def run(
        self,
        logits: npt.NDArray[np.float32],
        n_prompt: int,
        engine: BeamEvaluator,
        check: Callable[[], None],
        guide: Guide | None = None,
    ) -> list[Beam]:
        """Return the best sequences, best first, at most `n_beams`.

        Parameters
        ----------
        logits : float32, (n_logits,)
            After the prompt.
        n_prompt : int
            Tokens of it, whose keys and values slot 0 holds.
        engine : BeamEvaluator
            With a slot a beam.
        check : callable
            Called before every step; where it raises `EndedEarly`, what there is is returned.
        guide : Guide, optional
            What all sequences must look like.
        """
        beams = [Beam((), (), 0, guide)]
        rows = logits[None]
        done: list[Beam] = []
        for length in range(1, self.max_tokens + 1):
            found = self._extended(beams, rows)
            is_last = length == self.max_tokens
            # A sequence that ended counts where it is among the best of its length.
            done += [b for b in found[: self.n_beams] if is_last or b.has_ended]
            done = sorted(done, key=lambda beam: -self.score(beam))[: self.n_beams]
            beams = [b for b in found if not b.has_ended][: self.n_beams]
            if is_last or self._is_settled(done, beams):
                break
            try:
                check()
            except EndedEarly:
                done += beams
                break
            beams = _in_slots_of_their_own(beams, n_prompt + length - 1, engine, self.n_beams)
            n = len(beams)
            rows = engine.forward(
                np.array([beam.tokens[-1] for beam in beams], np.int32),
                np.full(n, n_prompt + length - 1, np.int32),
                np.array([beam.slot for beam in beams], np.int32),
                range(n),
            )
        return sorted(done, key=lambda beam: -self.score(beam))[: self.n_beams]

    def _extended(self, beams: list[Beam], rows: npt.NDArray[np.float32]) -> list[Beam]:
        """Return the likeliest sequences that are one token longer, likeliest first.

        So many that `n_beams` are left when all are taken away that end with an end token.
        """
        n = self.n_beams * (1 + len(self.ends))
        found = []
        for beam, row in zip(beams, rows, strict=True):
            total = log_sum_exp(row)
            logits = row[: self.vocab_size]
            if beam.guide is not None:
                logits = masked(logits, beam.guide.allowed())
            for token in top_k(logits, n).tolist():
                if logits[token] > -math.inf:
                    logprobs = (*beam.logprobs, float(row[token]) - total)
                    found.append(Beam((*beam.tokens, token), logprobs, beam.slot, beam.guide))
        # Of equals the first: the order does not depend on how they were found.
        best = sorted(found, key=lambda beam: (-beam.logprob, beam.tokens))[:n]
        return [self._followed(beam) for beam in best]

    def _followed(self, beam: Beam) -> Beam:
        """Return a sequence with what its last token, which is new, means for it."""
        token = beam.tokens[-1]
        if token in self.ends:
            return beam._replace(guide=None, has_ended=True)
        if beam.guide is None:
            return beam
        guide = beam.guide.copy()
        return beam._replace(guide=guide, has_ended=guide.accept(token))

    def _is_settled(self, done: list[Beam], beams: list[Beam]) -> bool:
        """Whether no sequence that goes on can become better than those that ended."""
        if not beams:
            return True
        if len(done) < self.n_beams:
            return False
        # Logarithms only fall; a penalty above 0 forgives most at the greatest length.
        length = self.max_tokens if self.length_penalty > 0 else len(beams[0].tokens)
        return beams[0].logprob / math.pow(length, self.length_penalty) <= self.score(done[-1])


def _in_slots_of_their_own(
    beams: list[Beam], n_positions: int, engine: BeamEvaluator, n_slots: int
) -> list[Beam]:
    """Copy keys and values for all but the first of the beams that came of one."""
    taken: set[int] = {beam.slot for beam in beams}
    free = [slot for slot in range(n_slots) if slot not in taken]
    seen: set[int] = set()
    placed = []
    for beam in beams:
        slot = beam.slot
        if slot in seen:
            slot = free.pop()
            engine.write_cache(engine.read_cache(n_positions, beam.slot), slot)
        seen.add(slot)
        placed.append(beam._replace(slot=slot))
    return placed
