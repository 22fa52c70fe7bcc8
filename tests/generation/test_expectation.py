from __future__ import annotations

import pytest

from qllama.generation.expectation import Chances, StepCosts
from qllama.generation.lookup import Guess


def costs(price, seconds=1.0):
    known = StepCosts()
    known.price, known.seconds = price, seconds
    return known


def n_verified(usual, price, n_most=15, guess_seconds=0.0):
    """Guesses taken of an endless row of one kind."""
    guesses = iter(lambda: Guess(0, 0), None)
    return Chances([usual]).worthwhile(guesses, costs(price), guess_seconds, n_most)[1]


@pytest.mark.parametrize(
    ("usual", "price", "expected"),
    [
        (0.9, 0.01, 15),  # as many as may be
        (0.5, 0.15, 2),  # a third has a chance of 0.125 and needs 1.2 * 0.15 * 1.75 / 1.3
        (0.15, 0.15, 0),
        (1.0, 0.9, 0),  # steps as dear as their tokens gain nothing
    ],
)
def test_expectation_guesses_are_taken_while_they_pay(usual, price, expected):
    assert n_verified(usual, price) == expected


def test_expectation_number_taken_gives_the_most_tokens_a_second():
    chance, price = 0.8, 0.15
    rates = [sum(chance**i for i in range(k + 1)) / (1 + price * k) for k in range(16)]
    best = rates.index(max(rates))
    assert 0 < n_verified(chance, price) <= best  # a margin is kept
    assert rates[n_verified(chance, price)] > 0.98 * rates[best]


def test_expectation_guess_beyond_the_verified_is_kept_to_learn_from():
    row = [Guess(5, 0), Guess(6, 1), Guess(7, 0)]
    guesses, n = Chances([0.9, 0.01]).worthwhile(iter(row), costs(0.15), 0.0, 15)
    assert (guesses, n) == (row[:2], 1)


def test_expectation_kind_that_fails_is_given_up_and_taken_up_again():
    chances = Chances([0.6])
    taken = []
    for came_true in [False] * 20 + [True] * 40:
        guesses, n = chances.worthwhile(iter([Guess(0, 0)]), costs(0.15), 0.0, 1)
        taken.append(n)
        chances.observed(guesses[0].kind, came_true)
    assert taken[0] == 1
    assert taken[19] == 0
    assert taken[-1] == 1


def test_expectation_dear_guesses_that_fail_are_made_rarely():
    chances = Chances([0.9])
    made = 0
    for _ in range(400):
        guesses, _ = chances.worthwhile(iter([Guess(0, 0)]), costs(0.1), 0.3, 1)
        for guess in guesses:
            made += 1
            chances.observed(guess.kind, came_true=False)
    assert 20 < made < 50


def test_expectation_price_of_a_token_is_learned_from_steps():
    known = StepCosts()
    known.measured(1, 0.01)
    for _ in range(200):
        known.measured(5, 0.03)
    assert known.price == pytest.approx(0.5, rel=0.01)
    assert known.seconds == 0.01


def test_expectation_one_slow_step_changes_little():
    known = StepCosts()
    for _ in range(20):
        known.measured(1, 0.01)
        known.measured(3, 0.013)
    before = known.price
    known.measured(3, 10.0)
    known.measured(1, 10.0)
    assert known.price < before + 0.11
    assert known.seconds < 0.011


def test_expectation_price_too_high_to_try_comes_down_again():
    known = StepCosts()
    known.measured(1, 0.01)
    usual = known.price
    for _ in range(100):
        known.measured(2, 0.1)
    assert known.price > 1
    for _ in range(1200):
        known.measured(1, 0.01)
    assert known.price == pytest.approx(usual, rel=0.1)
