"""Guesses at an answer's next tokens, from the text so far: prompt lookup.

Where the end of the text stood before, it may go on as it did then. Answers that rewrite,
extract from or correct their prompt do so most of the time. Owns the search only: whether
a guess is worth a step's time is `expectation`'s business, whether it is right the model's.

Reference: A. Saxena, Prompt Lookup Decoding, 2023
(https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = ["Guess", "Guesser", "PromptLookup"]

#: How often guesses come true after a match of 1, 2, ... tokens, until an answer has shown
#: how often its own do.
_CHANCES = (0.1, 0.15, 0.3, 0.5, 0.65, 0.7, 0.75, 0.9)


class Guess(NamedTuple):
    """A token that may come next.

    Parameters
    ----------
    token : int
    kind : int
        Guesses of one kind are right about equally often.
    """

    token: int
    kind: int


@runtime_checkable
class Guesser(Protocol):
    """Guesses what follows a text."""

    @property
    def chances(self) -> tuple[float, ...]:
        """How often guesses of each kind come true, before anything is known of them."""

    @property
    def seconds(self) -> float:
        """What a guess takes; 0 where it is nothing beside a step of the model."""

    def guesses(self, tokens: npt.NDArray[np.int32], check: Callable[[], None]) -> Iterator[Guess]:
        """Guess what follows, token after token, while the caller asks for more.

        Parameters
        ----------
        tokens : int32, (n_tokens,)
            The text so far, at least one token.
        check : callable
            To be called often where this takes long; an exception it raises ends it.
        """


class PromptLookup:
    """Guesses that the text goes on as it did where its end last stood.

    Of all places where the longest part of the end stood, the last one counts; where what
    followed there reaches the end itself, the text is taken to go round and round.

    Parameters
    ----------
    max_ngram_size : int
        Most tokens to compare.
    num_pred_tokens : int
        Most tokens to guess.

    Raises
    ------
    ValueError
        When one of them is below 1.
    """

    seconds = 0.0

    def __init__(self, max_ngram_size: int = len(_CHANCES), num_pred_tokens: int = 15) -> None:
        for name, value in (
            ("max_ngram_size", max_ngram_size),
            ("num_pred_tokens", num_pred_tokens),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")
        self._n_compared = max_ngram_size
        self._n_guesses = num_pred_tokens

    @property
    def chances(self) -> tuple[float, ...]:
        """How often guesses come true, by the tokens that the text had in common before."""
        return _CHANCES

    def guesses(self, tokens: npt.NDArray[np.int32], check: Callable[[], None]) -> Iterator[Guess]:
        """Guess what follows; see `Guesser`."""
        text = tokens.tobytes()  # searching bytes takes a fraction of what comparing arrays does
        length, place = 0, -1
        while length < self._n_compared:
            found = _last_place(text, length + 1)
            if found < 0:
                break
            length, place = length + 1, found
        if length == 0:
            return
        followed = tokens[place + length :][: self._n_guesses].tolist()
        for i in range(self._n_guesses):
            kind = min(length + i, len(_CHANCES)) - 1
            yield Guess(followed[i % len(followed)], kind)


def _last_place(text: bytes, length: int) -> int:
    """Return where the last tokens of int32 `text` last stood before their end; or -1."""
    end = text[-4 * length :]
    limit = len(text) - 4
    if len(end) < 4 * length:
        return -1
    while True:
        place = text.rfind(end, 0, limit)
        if place % 4 == 0 or place < 0:
            return place // 4
        limit = place + len(end) - 1  # it was found across two tokens
