from __future__ import annotations

import math

import numpy as np
import pytest

from qllama.generation import penalties

INF = math.inf
DRY = {"multiplier": 2.0, "base": 3.0, "allowed_length": 2}


def float32(*values):
    return np.array(values, np.float32)


def test_penalties_hand_computed_numbers_are_met():
    logits = float32(2, -1, 0, 4, 1)
    penalized = penalties.apply_penalties(
        logits, np.array([0, 1, 0, 3, 2, 0], np.int32), repeat=2, presence=0.5, frequency=0.25
    )
    # used 3, 1, 1, 1, 0 times: 2/2-0.75-0.5, -1*2-0.25-0.5, 0-0.25-0.5, 4/2-0.25-0.5
    assert penalized.tolist() == [-0.25, -2.75, -0.75, 1.25, 1]
    assert penalized.dtype == np.float32
    assert logits.tolist() == [2, -1, 0, 4, 1]


def test_penalties_forbidden_token_stays_forbidden():
    recent = np.array([0], np.int32)
    out = penalties.apply_penalties(float32(-INF, 0), recent, repeat=1.5, presence=-1, frequency=0)
    assert out.tolist() == [-INF, 0]


@pytest.mark.parametrize(
    ("recent", "repeat"), [([], 2.0), ([0, 1], 1.0)], ids=["nothing used", "all off"]
)
def test_penalties_without_effect_return_the_logits_themselves(recent, repeat):
    logits = float32(1, 2)
    out = penalties.apply_penalties(
        logits, np.array(recent, np.int32), repeat=repeat, presence=0, frequency=0
    )
    assert out is logits


def test_logit_bias_is_added_and_can_forbid():
    logits = float32(1, 2, 3)
    assert penalties.apply_logit_bias(logits, {0: 0.5, 2: -INF}).tolist() == [1.5, 2, -INF]
    assert logits.tolist() == [1, 2, 3]


@pytest.mark.parametrize("token", [-1, 3])
def test_logit_bias_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match=rf"logit_bias: .* 0\.\.2, found {token}"):
        penalties.apply_logit_bias(float32(1, 2, 3), {token: 1.0})


def test_penalties_repeat_of_zero_is_refused():
    with pytest.raises(ValueError, match="repeat: expected > 0"):
        penalties.apply_penalties(
            float32(1, 2), np.array([0], np.int32), repeat=0, presence=0, frequency=0
        )


def dry(recent, **options):
    """What DRY takes from ten tokens' logits."""
    logits = np.zeros(10, np.float32)
    found = penalties.apply_dry(logits, np.array(recent, np.int32), **DRY | options)
    return {token: -loss for token, loss in enumerate(found.tolist()) if loss}


@pytest.mark.parametrize(
    ("recent", "losses"),
    [
        ([], {}),
        ([1], {}),
        ([1, 2, 3, 4], {}),
        ([1, 2, 1], {}),  # a run of one token is free
        ([1, 2, 3, 1, 2], {3: 2}),
        ([1, 2, 3, 4, 1, 2, 3], {4: 6}),
        ([0, 1, 2, 3, 4, 0, 1, 2, 3], {4: 18}),
        ([5, 1, 2, 3, 7, 1, 2, 4, 5, 1, 2], {3: 6, 4: 2}),
        ([1, 1, 1, 1], {1: 6}),
        ([1, 2, 2, 3, 2, 4, 1, 2, 2], {3: 6}),  # llama.cpp's own example, in small
    ],
)
def test_dry_what_would_repeat_a_run_loses_by_its_length(recent, losses):
    assert dry(recent) == losses


def test_dry_runs_do_not_go_beyond_a_breaker_and_breakers_are_free():
    recent = [9, 1, 2, 3, 9, 1, 2]
    assert dry(recent) == {3: 6}
    assert dry(recent, breakers={9}) == {3: 2}
    assert dry(recent, breakers={1}) == {}
    assert dry([1, 2, 9, 1, 2], breakers={9}) == {}


def test_dry_any_text_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(300):
        recent = rng.integers(0, 3, rng.integers(0, 30)).tolist()
        breakers = set(rng.integers(0, 6, 1).tolist())
        after = len(recent)
        longest = next((n for n in range(after) if recent[after - 1 - n] in breakers), after)
        expected = {}
        for end in range(1, after):
            n = 0
            while n < min(end, longest) and recent[end - 1 - n] == recent[after - 1 - n]:
                n += 1
            if n >= 2 and recent[end] not in breakers:
                expected[recent[end]] = max(expected.get(recent[end], 0.0), 2.0 * 3.0 ** (n - 2))
        assert dry(recent, breakers=breakers) == expected


@pytest.mark.filterwarnings("error")
def test_dry_endless_repetition_forbids_the_token_without_a_warning():
    logits = penalties.apply_dry(
        float32(0, 0), np.zeros(3000, np.int32), multiplier=1, base=2, allowed_length=2
    )
    assert logits.tolist() == [-INF, 0]


def test_dry_without_effect_returns_the_logits_themselves():
    logits = float32(1, 2)
    for recent, multiplier in (([0, 1], 1), ([0, 0, 0, 0], 0), ([], 1)):
        options = DRY | {"multiplier": multiplier}
        assert penalties.apply_dry(logits, np.array(recent, np.int32), **options) is logits
