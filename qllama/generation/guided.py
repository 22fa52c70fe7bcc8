"""Guesses at an answer of a given form: what the form leaves no choice about comes true.

Half of the tokens of JSON by a schema are names and punctuation. A step evaluates them with
the token before, in hardly more time than that token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from qllama.generation.guide import Guide
from qllama.generation.lookup import Guess, Guesser

__all__ = ["GuidedGuesser"]


class GuidedGuesser:
    """Guesses the tokens that must come, then what another guesser says and the form allows.

    Parameters
    ----------
    guide : Guide
        Of the answer that is guessed at.
    guesser : Guesser
        Guesses what follows them.
    """

    def __init__(self, guide: Guide, guesser: Guesser) -> None:
        self._guide = guide
        self._guesser = guesser
        self.chances = (1.0, *guesser.chances)
        self.seconds = guesser.seconds

    def guesses(self, tokens: npt.NDArray[np.int32], check: Callable[[], None]) -> Iterator[Guess]:
        """Guess what follows; see `Guesser`."""
        guessed = self._guide.forced()
        for token in guessed:
            yield Guess(token, 0)
        tokens = np.concatenate([tokens, np.array(guessed, np.int32)])
        for guess in self._guesser.guesses(tokens, check):
            guessed.append(guess.token)
            if not self._guide.allows(guessed):
                return
            yield guess._replace(kind=guess.kind + 1)
