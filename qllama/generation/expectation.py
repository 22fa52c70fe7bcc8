"""How many guesses a step is to verify: what they promise against what they cost.

Owns the estimates, which are learned while answers are made: how often guesses come true,
and what more tokens add to a step. They decide about time alone, never about tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qllama.generation.lookup import Guess

__all__ = ["MOST_GUESSES", "Chances", "StepCosts"]

# What guesses add to a step, in steps of one token: 4-bit models of 135M and 1B weights by
# AVX512-VNNI and AMX. The first ones wait for the weights anyway.
_USUAL_COSTS = (
    *(0.0, 0.12, 0.22, 0.27, 0.52, 0.7, 0.8, 0.95),
    *(1.2, 1.45, 1.7, 1.95, 2.15, 2.35, 2.55, 2.75),
)
#: Of one step.
MOST_GUESSES = len(_USUAL_COSTS) - 1
# Of new observations, once there are more than the inverse of it.
_WEIGHT = 0.05
# How many observations the first estimate counts for.
_DOUBT = 4
# What is not observed any more goes back to what is usual by this part a step.
_FORGETTING = 0.002
# A step may be slow for other reasons: no observation counts for more than so much.
_HIGHEST_FACTOR = 10.0
# Guesses must promise so much more than they cost: all of these are estimates.
_MARGIN = 1.2
# Less likely guesses never pay.
_LEAST_CHANCE = 0.05


class StepCosts:
    """What steps of one model take on this machine.

    Attributes
    ----------
    factor : float
        How many times more guesses add to a step than is usual.
    seconds : float
        Of a step of one token; 0 until one was measured.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self.seconds = 0.0
        self._n_measured = _DOUBT

    def of(self, n_guesses: int) -> float:
        """Return what guesses add to a step, in steps of one token.

        Parameters
        ----------
        n_guesses : int
            Up to `MOST_GUESSES`.
        """
        return self.factor * _USUAL_COSTS[n_guesses]

    def measured(self, n_guesses: int, seconds: float) -> None:
        """Hear what a step took.

        Parameters
        ----------
        n_guesses : int
        seconds : float
        """
        if n_guesses == 0:
            usual = self.seconds or seconds
            self.seconds = usual + _WEIGHT * (min(seconds, 2 * usual) - usual)
            self.factor += _FORGETTING * (1 - self.factor)
        elif self.seconds:
            factor = (seconds / self.seconds - 1) / _USUAL_COSTS[n_guesses]
            self._n_measured += 1
            weight = max(_WEIGHT, 1 / self._n_measured)
            self.factor += weight * (min(max(factor, 0.0), _HIGHEST_FACTOR) - self.factor)


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
        """Take as many guesses as give the most tokens a second.

        A guess is worth a token if it and all before it come true.

        Parameters
        ----------
        guesses : iterator of Guess
        costs : StepCosts
        guess_seconds : float
            What it takes to make one.
        n_most : int
            Up to `MOST_GUESSES`.

        Returns
        -------
        list of Guess, int
            What was guessed, and how many of these are to be verified. Those beyond them
            cost nothing any more, and are learned from.
        """
        price = guess_seconds / costs.seconds if costs.seconds else 0.0
        taken: list[Guess] = []
        best = 0
        chance = n_tokens = best_rate = 1.0
        while len(taken) < n_most and chance >= _LEAST_CHANCE:
            n = len(taken) + 1
            if price and chance * self._of_any < _MARGIN * best_rate * (price + costs.of(n) / n):
                if n == 1:  # a little is forgotten, so that it will be tried again
                    self._of_any += _FORGETTING * (self._usual_of_any - self._of_any)
                break
            guess = next(guesses, None)
            if guess is None:
                break
            taken.append(guess)
            chance *= self._of_kind[guess.kind]
            n_tokens += chance
            rate = n_tokens / (1 + _MARGIN * (costs.of(n) + n * price))
            if rate > best_rate:
                best, best_rate = n, rate
        return taken, best
