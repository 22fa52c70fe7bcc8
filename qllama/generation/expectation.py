"""How many guesses a step is to verify: what they promise against what they cost.

Owns the estimates, which are learned while answers are made: how often guesses come true,
and what a token more adds to a step. They decide about time alone, never about tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qllama.generation.lookup import Guess

__all__ = ["Chances", "StepCosts"]

# What a token more adds to a step, in steps of one token: 4-bit models on AVX-512.
_USUAL_PRICE = 0.15
# Of new observations, once there are more than the inverse of it.
_WEIGHT = 0.05
# How many observations the first estimate counts for.
_DOUBT = 4
# What is not observed any more goes back to what is usual by this part a step.
_FORGETTING = 0.005
# A step may be slow for other reasons: no observation counts for more than so much.
_HIGHEST_PRICE = 2.0
# A guess must promise so much more than it costs: all of these are estimates.
_MARGIN = 1.2


class StepCosts:
    """What steps of one model take on this machine.

    Attributes
    ----------
    price : float
        What a token more adds to a step, in steps of one token.
    seconds : float
        Of a step of one token; 0 until one was measured.
    """

    def __init__(self) -> None:
        self.price = _USUAL_PRICE
        self.seconds = 0.0

    def measured(self, n_tokens: int, seconds: float) -> None:
        """Hear what a step took.

        Parameters
        ----------
        n_tokens : int
        seconds : float
        """
        if n_tokens == 1:
            usual = self.seconds or seconds
            self.seconds = usual + _WEIGHT * (min(seconds, 2 * usual) - usual)
            self.price += _FORGETTING * (_USUAL_PRICE - self.price)
        elif self.seconds:
            price = (seconds / self.seconds - 1) / (n_tokens - 1)
            self.price += _WEIGHT * (min(max(price, 0.0), _HIGHEST_PRICE) - self.price)


class Chances:
    """How often the guesses about one answer come true.

    Parameters
    ----------
    usual : sequence of float
        Of each kind of guess, before any is observed.
    """

    def __init__(self, usual: Sequence[float]) -> None:
        self._of_kind = list(usual)
        self._n_observed = [_DOUBT] * len(usual)
        self._usual_of_any = self._of_any = sum(usual) / len(usual)

    def observed(self, kind: int, came_true: bool) -> None:
        """Learn from a guess.

        Parameters
        ----------
        kind : int
        came_true : bool
        """
        self._n_observed[kind] += 1
        weight = max(_WEIGHT, 1 / self._n_observed[kind])
        self._of_kind[kind] += weight * (came_true - self._of_kind[kind])
        self._of_any += _WEIGHT * (came_true - self._of_any)

    def worthwhile(
        self, guesses: Iterator[Guess], costs: StepCosts, guess_seconds: float, n_most: int
    ) -> tuple[list[Guess], int]:
        """Take guesses as long as they pay.

        A guess counts if it and all before it come true. As the chance of that falls with
        each, while each costs the same, tokens per second rise until a guess promises less
        than its share of the step's time.

        Parameters
        ----------
        guesses : iterator of Guess
        costs : StepCosts
        guess_seconds : float
            What it takes to make one.
        n_most : int

        Returns
        -------
        list of Guess, int
            What was guessed, and how many of these are to be verified. One beyond them
            costs nothing and is learned from.
        """
        guess_price = guess_seconds / costs.seconds if costs.seconds else 0.0
        taken: list[Guess] = []
        chance = n_tokens = n_steps = 1.0
        while len(taken) < n_most:
            rate = _MARGIN * n_tokens / n_steps
            if guess_price and chance * self._of_any < rate * (costs.price + guess_price):
                if not taken:  # a little is forgotten, so that it will be tried again
                    self._of_any += _FORGETTING * (self._usual_of_any - self._of_any)
                break
            guess = next(guesses, None)
            if guess is None:
                break
            chance *= self._of_kind[guess.kind]
            n_steps += guess_price
            if chance < rate * costs.price:
                return [*taken, guess], len(taken)
            taken.append(guess)
            n_tokens += chance
            n_steps += costs.price
        return taken, len(taken)
