from __future__ import annotations

import pytest

from qllama.generation.expectation import MOST_GUESSES, Chances, StepCosts
from qllama.generation.lookup import Guess


def costs(factor=1.0):
    known = StepCosts()
    known.factor, known.seconds = factor, 1.0
    return known


def taken(usual, factor, n_most=MOST_GUESSES):
    """What is taken of an endless row of guesses of one kind: how many, and to verify."""
    guesses = iter(lambda: Guess(0, 0), None)
    made, n = Chances([usual]).worthwhile(guesses, costs(factor), 0.0, n_most)
    return len(made), n


@pytest.mark.parametrize(
    ("usual", "factor", "expected"),
    [
        (0.99, 0.1, 15),  # as many as may be
        (0.6, 1.0, 3),  # a fourth adds most to a step
        (0.1, 1.0, 0),
        (1.0, 20.0, 0),  # steps as dear as their tokens gain nothing
    ],
)
def test_expectation_guesses_are_taken_while_they_pay(usual, factor, expected):
    assert taken(usual, factor)[1] == expected


@pytest.mark.parametrize("chance", [0.3, 0.5, 0.7, 0.9, 0.97])
def test_expectation_number_taken_gives_nearly_the_most_tokens_a_second(chance):
    known = costs()
    rates = [
        sum(chance**i for i in range(k + 1)) / (1 + known.of(k)) for k in range(MOST_GUESSES + 1)
    ]
    # A fifth is kept as a margin.
    assert rates[taken(chance, 1.0)[1]] > 0.97 * max(rates)


def test_expectation_guesses_beyond_the_verified_are_few():
    n_made, n = taken(0.2, 1.0)
    assert n_made <= n + 2


def test_expectation_never_takes_more_than_it_may():
    assert taken(0.99, 0.1, n_most=4) == (4, 4)


def test_expectation_kind_that_fails_is_given_up_and_taken_up_again():
    chances = Chances([0.6])
    verified = []
    for came_true in [False] * 20 + [True] * 40:
        guesses, n = chances.worthwhile(iter([Guess(0, 0)]), costs(), 0.0, 1)
        verified.append(n)
        chances.observed(guesses[0].kind, came_true)
    assert (verified[0], verified[19], verified[-1]) == (1, 0, 1)


def test_expectation_dear_guesses_that_fail_are_made_rarely():
    chances = Chances([0.9])
    made = 0
    for _ in range(400):
        guesses, _ = chances.worthwhile(iter([Guess(0, 0)]), costs(), 0.3, 1)
        for guess in guesses:
            made += 1
            chances.observed(guess.kind, came_true=False)
    assert 15 < made < 40


def test_expectation_costs_are_learned_from_steps():
    known = StepCosts()
    known.measured(0, 0.01)
    for _ in range(200):
        known.measured(5, 0.03)
    assert known.of(5) == pytest.approx(2.0, rel=0.01)
    assert known.seconds == 0.01


def test_expectation_one_slow_step_changes_little():
    known = StepCosts()
    for _ in range(20):
        known.measured(0, 0.01)
        known.measured(3, 0.013)
    before = known.of(3)
    known.measured(3, 10.0)
    known.measured(0, 10.0)
    assert known.of(3) < before + 0.15
    assert known.seconds < 0.011


def test_expectation_costs_too_high_to_try_come_down_again():
    known = StepCosts()
    known.measured(0, 0.01)
    usual = known.of(1)
    for _ in range(100):
        known.measured(1, 0.1)
    assert known.of(1) > 1
    for _ in range(3000):
        known.measured(0, 0.01)
    assert known.of(1) == pytest.approx(usual, rel=0.1)
