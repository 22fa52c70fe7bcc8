"""Guesses at an answer's next tokens by a second, smaller model of the same vocabulary.

Owns what its logits become. It always takes its likeliest token; how likely that was is
the guess's kind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from qllama.generation.logprobs import token_logprob
from qllama.generation.lookup import Guess
from qllama.generation.session import Session

__all__ = ["SecondModel"]

# Kinds are tenths of probability; models that agree at all are right about as often.
_CHANCES = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
# Of a new observation.
_WEIGHT = 0.05


class SecondModel:
    """Guesses what another model would choose.

    Parameters
    ----------
    session : Session
        Of the second model.
    lock : threading.Lock
        Guards the session.
    vocab_size : int
        Tokens of both models; logits beyond are padding.

    Attributes
    ----------
    seconds : float
        What a guess takes; 0 until one was measured.
    """

    def __init__(self, session: Session, lock: threading.Lock, vocab_size: int) -> None:
        self._session = session
        self._lock = lock
        self._vocab_size = vocab_size
        self.seconds = 0.0

    @property
    def chances(self) -> tuple[float, ...]:
        """How often guesses come true, by how likely they are to the second model."""
        return _CHANCES

    def guesses(self, tokens: npt.NDArray[np.int32], check: Callable[[], None]) -> Iterator[Guess]:
        """Guess what follows; see `Guesser`. Past its own context it guesses nothing.

        Parameters
        ----------
        tokens : int32, (n_tokens,)
        check : callable
        """
        while tokens.size <= self._session.n_ctx:
            with self._lock:
                started = time.perf_counter()
                logits, n_reused = self._session.evaluate(tokens, check=check)
            row = logits[0, : self._vocab_size]
            token = int(row.argmax())
            chance = np.exp(token_logprob(row, token, 0).logprob)
            if n_reused == tokens.size - 1:
                seconds = time.perf_counter() - started
                usual = self.seconds or seconds
                self.seconds = usual + _WEIGHT * (min(seconds, 2 * usual) - usual)
            yield Guess(token, min(int(chance * len(_CHANCES)), len(_CHANCES) - 1))
            tokens = np.append(tokens, np.int32(token))
