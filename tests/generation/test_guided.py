"""Guesses at answers of a given form: what must come, then what another guesser says."""

from __future__ import annotations

import numpy as np
import pytest
from fake_model import EOS, ByteTokenizer

from qllama.generation.constraint import Constraint
from qllama.generation.guide import Guides
from qllama.generation.guided import GuidedGuesser
from qllama.generation.lookup import Guess


class Reciter:
    """Guesses always the same, and notes what it was asked about."""

    chances = (0.5, 0.25)
    seconds = 2.0

    def __init__(self, guesses):
        self._guesses = guesses
        self.asked = None

    def guesses(self, tokens, check):
        self.asked = bytes(tokens.tolist())
        for token in self._guesses:
            yield Guess(token, 1)


def guessed(regex, recited, accepted=b""):
    guide = Guides(ByteTokenizer()).guide(Constraint.of(regex=regex), (EOS,), None)
    for token in accepted:
        guide.accept(token)
    reciter = Reciter(recited)
    guesser = GuidedGuesser(guide, reciter)
    assert (guesser.chances, guesser.seconds) == ((1.0, 0.5, 0.25), 2.0)
    found = list(guesser.guesses(np.array([*b"go: ", *accepted], np.int32), lambda: None))
    return bytes(g.token for g in found), [g.kind for g in found], reciter.asked


def test_guided_guesses_begin_with_what_must_come():
    found = guessed(r"abc\d+", b"12", b"a")
    assert found == (b"bc12", [0, 0, 2, 2], b"go: abc")


@pytest.mark.parametrize("recited", [b"1x2", b"1\x80", [ord("1"), EOS]])
def test_guided_guesses_end_before_what_may_not_come(recited):
    assert guessed(r"\d{3}z", recited)[:2] == (b"1", [2])


def test_guided_guesses_where_nothing_must_come_are_the_other_guessers():
    assert guessed(r"\d+", b"34") == (b"34", [2, 2], b"go: ")


def test_guessing_leaves_the_guide_where_it_was():
    guide = Guides(ByteTokenizer()).guide(Constraint.of(regex="ab[xy]z"), (EOS,), None)
    for _ in range(2):
        guesses = GuidedGuesser(guide, Reciter(b"yz")).guesses(np.zeros(1, np.int32), lambda: None)
        assert bytes(g.token for g in guesses) == b"abyz"
    assert guide.allowed().nonzero()[0].tolist() == [*b"a"]
