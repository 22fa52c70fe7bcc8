"""Speculative decoding: the logits of an answer's next tokens, evaluated ahead.

A step of a few tokens takes little longer than a step of one: the weights are read once.
So a step may evaluate, behind the last token, guesses of what follows. Whoever chooses
tokens is handed their logits one by one, as in plain decoding, until he chooses another
token than was guessed; the rest is thrown away. As an engine's results do not depend on
how tokens are split into steps, every logit is the same to the bit as in plain decoding:
whatever sampler, penalty or constraint chooses, and with whatever random numbers.

References: Y. Leviathan et al., Fast Inference from Transformers via Speculative Decoding,
2023, whose rule of acceptance this needs not: it draws by the same random number that plain
decoding would; A. Saxena, Prompt Lookup Decoding, 2023.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from qllama.generation.expectation import MOST_GUESSES, Chances, StepCosts
from qllama.generation.lookup import Guess, Guesser
from qllama.generation.session import Evaluated, Progress, Session

__all__ = ["Speculation"]


class Speculation:
    """Evaluates one answer, guessed tokens with the chosen ones.

    Parameters
    ----------
    session : Session
        Evaluates.
    guesser : Guesser
        Guesses.
    costs : StepCosts
        The model's; learns from every step.
    n_limit : int
        Most tokens of prompt and answer together.
    n_most : int
        Guesses of one step at most; more than `MOST_GUESSES` are never made.

    Attributes
    ----------
    n_guessed, n_accepted : int
        Guesses that were evaluated, and how many of them were then chosen.
    """

    def __init__(
        self, session: Session, guesser: Guesser, costs: StepCosts, n_limit: int, n_most: int
    ) -> None:
        self._session = session
        self._guesser = guesser
        self._costs = costs
        self._n_limit = n_limit
        self._n_most = min(n_most, MOST_GUESSES)
        self._chances = Chances(guesser.chances)
        # What the last step was for: its guesses follow the first `_place` tokens, and row
        # i of the logits belongs behind i of them. The guess beyond the rows was not
        # evaluated.
        self._place = 0
        self._guesses: list[Guess] = []
        self._rows = np.empty((0, 0), np.float32)
        self._n_changes = -1  # never seen
        self.n_guessed = self.n_accepted = 0

    def evaluate(
        self,
        tokens: npt.NDArray[np.int32],
        *,
        on_progress: Progress | None = None,
        check: Callable[[], None],
    ) -> Evaluated:
        """Return the logits of the last token, which may have been evaluated ahead.

        Parameters
        ----------
        tokens : int32, (n_tokens,)
            The tokens of the last call and one more; or any, if this is the first call.
        on_progress, check : callable
            As in `Session.evaluate`, which says what is raised.
        """
        n_right = tokens.size - self._place
        if 0 < n_right <= len(self._guesses):
            guess = self._guesses[n_right - 1]
            came_true = guess.token == tokens[-1]
            self._chances.observed(guess.kind, came_true)
            if came_true and n_right < len(self._rows):
                self.n_accepted += 1
                return Evaluated(self._rows[n_right : n_right + 1], tokens.size)
        return self._step(tokens, on_progress, check)

    def _step(
        self,
        tokens: npt.NDArray[np.int32],
        on_progress: Progress | None,
        check: Callable[[], None],
    ) -> Evaluated:
        self._guesses, self._rows = [], self._rows[:0]
        if self._n_changes != self._session.n_changes:  # the prompt, or another call came between
            evaluated = self._session.evaluate(tokens, on_progress=on_progress, check=check)
            self._n_changes = self._session.n_changes
            return evaluated
        guesses: list[Guess] = []
        n_guesses = 0
        if self._costs.seconds:
            guesses, n_guesses = self._chances.worthwhile(
                self._guesser.guesses(tokens, check),
                self._costs,
                self._guesser.seconds,
                min(self._n_most, self._n_limit - tokens.size - 1),
            )
        n_known = tokens.size
        if n_guesses:
            ahead = np.array([guess.token for guess in guesses[:n_guesses]], np.int32)
            tokens = np.concatenate([tokens, ahead])
        started = time.perf_counter()
        rows, n_reused = self._session.evaluate(tokens, logits_from=n_known - 1, check=check)
        self._costs.measured(n_guesses, time.perf_counter() - started)
        self._n_changes = self._session.n_changes
        self._place, self._guesses, self._rows = n_known, guesses, rows
        self.n_guessed += n_guesses
        return Evaluated(rows[:1], n_reused)
