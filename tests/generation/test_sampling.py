from __future__ import annotations

import math
import types

import numpy as np
import pytest

from qllama.errors import SamplingError
from qllama.generation.options import SamplingOptions, SamplingParams
from qllama.generation.sampling import Sampler

NOTHING = np.array([], np.int32)
PROBABILITIES = np.array([0.05, 0.4, 0.02, 0.3, 0.2, 0.03])
LOGITS = np.log(PROBABILITIES).astype(np.float32)
UNFILTERED = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}

# 99.9% points of the chi-square distribution, by degrees of freedom.
CHI_SQUARE_LIMIT = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52}


def sampler(n=LOGITS.size, **params):
    return Sampler(SamplingParams(**params), n)


def draws(sampler, count, logits=LOGITS, history=NOTHING):
    return [sampler.sample(logits, history) for _ in range(count)]


def test_params_defaults_are_those_of_llama_cpp():
    params = SamplingParams()
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.8, 40, 0.95, 0.05)
    assert (params.repeat_penalty, params.repeat_last_n) == (1.0, 64)


def test_params_options_dict_has_the_same_fields_and_types():
    options = dict(SamplingOptions.__annotations__)
    params = dict(SamplingParams.__annotations__)
    assert {k: v.__forward_arg__ for k, v in options.items()} == params


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("temperature", -0.1, "from 0"),
        ("temperature", math.nan, "finite number"),
        ("temperature", math.inf, "finite number"),
        ("temperature", "hot", "number"),
        ("top_k", -1, "integer >= 0"),
        ("top_k", 1.5, "integer"),
        ("top_k", True, "integer"),
        ("top_p", 1.1, "from 0 up to 1"),
        ("min_p", -0.1, "from 0 up to 1"),
        ("typical_p", 1.5, "from 0 up to 1"),
        ("xtc_probability", -1, "from 0 up to 1"),
        ("dry_base", 0.5, "from 1"),
        ("dry_sequence_breakers", "abc", "sequence of non-empty strings"),
        ("dry_sequence_breakers", ["a", ""], "sequence of non-empty strings"),
        ("mirostat", 1, "0 .off. or 2"),
        ("repeat_penalty", 0, "above 0"),
        ("repeat_last_n", -2, "integer >= -1"),
        ("presence_penalty", math.inf, "finite number"),
        ("frequency_penalty", None, "number"),
        ("seed", -2, "integer >= -1"),
        ("seed", 1.0, "integer"),
    ],
)
def test_params_out_of_range_are_refused_by_name_and_range(name, value, wanted):
    with pytest.raises(ValueError, match=f"{name}: expected .*{wanted}.*found"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("bias", "name"), [({-1: 1.0}, "token id"), ({3: math.inf}, r"\[3\]"), ({3: "x"}, r"\[3\]")]
)
def test_params_bad_logit_bias_is_refused_by_name(bias, name):
    with pytest.raises(ValueError, match=f"logit_bias.*{name}"):
        SamplingParams(logit_bias=bias)


def test_params_later_change_of_the_bias_has_no_effect():
    bias = {1: -math.inf}
    params = SamplingParams(logit_bias=bias)
    bias.clear()
    assert params.logit_bias == {1: -math.inf}


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_p": 0.85}, [1, 3, 4]),
        ({"min_p": 0.11}, [0, 1, 3, 4]),
        ({"typical_p": 0.45}, [3, 4]),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.25}, [0, 2, 3, 4, 5]),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.25, "top_k": 2, "temperature": 2}, [3]),
        ({"mirostat": 2, "mirostat_tau": 0.9, "mirostat_eta": 0.0}, [1, 3]),
        ({"mirostat": 2, "mirostat_tau": 9, "mirostat_eta": 0, "temperature": 3}, [*range(6)]),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 3.0, "top_k": 4, "top_p": 0.9, "min_p": 0.6}, [1, 3]),
        ({"logit_bias": {1: -math.inf}}, [0, 2, 3, 4, 5]),
    ],
)
def test_sample_frequencies_follow_the_filtered_distribution(params, kept):
    params = UNFILTERED | params
    expected = np.zeros(LOGITS.size)
    expected[kept] = PROBABILITIES[kept] ** (1 / params["temperature"])
    expected /= expected.sum()
    count = 4000
    found = np.bincount(draws(sampler(seed=11, **params), count), minlength=LOGITS.size)
    assert found[expected == 0].sum() == 0
    if len(kept) == 1:
        return
    ideal = count * expected[kept]
    statistic = float(((found[kept] - ideal) ** 2 / ideal).sum())
    assert statistic < CHI_SQUARE_LIMIT[len(kept) - 1]


def test_candidates_top_p_counts_among_what_top_k_left():
    # Of 0.4 and 0.3 alone the first has 0.57, enough for 0.5; of all tokens it has not.
    options = UNFILTERED | {"top_p": 0.5}
    assert sampler(**options | {"top_k": 2}).candidates(LOGITS, NOTHING).ids.tolist() == [1]
    assert sampler(**options).candidates(LOGITS, NOTHING).ids.tolist() == [1, 3]


def test_candidates_temperature_comes_after_the_filters():
    for temperature in (0.1, 1.0, 10.0):
        found = sampler(temperature=temperature, top_k=0, top_p=0.85, min_p=0.1)
        assert found.candidates(LOGITS, NOTHING).ids.tolist() == [1, 3, 4]


def test_candidates_penalties_come_before_the_filters():
    history = np.array([1], np.int32)
    found = sampler(top_k=2, presence_penalty=9.0).candidates(LOGITS, history)
    assert found.ids.tolist() == [3, 4]


def test_candidates_weights_are_proportional_to_the_probabilities():
    found = sampler(**UNFILTERED).candidates(LOGITS, NOTHING)
    assert found.weights.dtype == np.float64
    np.testing.assert_allclose(found.weights, PROBABILITIES / 0.4, rtol=1e-6)


def test_sample_at_temperature_zero_takes_the_largest_and_of_equals_the_lowest_id():
    logits = np.array([1, 5, 5, 2], np.float32)
    assert set(draws(sampler(4, temperature=0), 20, logits)) == {1}


def test_sample_at_temperature_zero_heeds_penalties_and_bias():
    greedy = sampler(temperature=0, presence_penalty=9, logit_bias={3: -math.inf})
    assert greedy.sample(LOGITS, np.array([1], np.int32)) == 4


@pytest.mark.parametrize(
    ("last_n", "token"),
    [(0, 1), (1, 1), (2, 3), (-1, 4)],
    ids=["none", "last token", "last two", "all"],
)
def test_sample_penalties_count_the_last_n_tokens(last_n, token):
    greedy = sampler(temperature=0, presence_penalty=9, repeat_last_n=last_n)
    history = np.array([3, 2, 1, 0], np.int32)
    assert greedy.sample(LOGITS, history) == token


def test_sample_known_seed_gives_these_tokens_on_every_machine():
    assert draws(sampler(seed=42, **UNFILTERED), 16) == GOLDEN_SEED_42
    assert draws(sampler(seed=43, **UNFILTERED), 16) != GOLDEN_SEED_42


# PCG64(42) gives .774 .439 .859 .697 .094 .976 .761 .786 .128 .450 .371 .927 .644 .823 .443
# .227; tokens 0..5 begin at 0, .05, .45, .47, .77 and .97 of the unit interval.
GOLDEN_SEED_42 = [4, 1, 4, 3, 1, 5, 3, 4, 1, 2, 1, 4, 3, 4, 1, 1]


@pytest.mark.parametrize("seed", [None, -1])
def test_sample_random_seed_is_reported_and_reproduces(seed):
    first, second = (sampler(seed=seed, **UNFILTERED) for _ in range(2))
    assert first.seed != second.seed
    again = sampler(seed=first.seed, **UNFILTERED)
    assert draws(first, 50) == draws(again, 50)


def test_sample_takes_one_random_number_however_many_tokens_are_left():
    peaked = np.array([50, 0, 0, 0, 0, 0], np.float32)
    after_peaked, after_flat = sampler(seed=5), sampler(seed=5)
    after_peaked.sample(peaked, NOTHING)
    after_flat.sample(np.zeros(6, np.float32), NOTHING)
    assert draws(after_peaked, 20) == draws(after_flat, 20)


def test_sample_smallest_random_number_takes_no_forbidden_token(monkeypatch):
    zero = types.SimpleNamespace(random=lambda: 0.0)
    monkeypatch.setattr(np.random, "Generator", lambda bits: zero)
    assert draws(sampler(logit_bias={0: -math.inf}, **UNFILTERED), 1) == [1]


def test_sample_leaves_the_logits_as_they_are():
    logits = LOGITS.copy()
    history = np.array([1, 3], np.int32)
    sampler(repeat_penalty=1.3, logit_bias={2: 1.0}).sample(logits, history)
    assert logits.tobytes() == LOGITS.tobytes()


def test_sample_logits_beyond_the_vocabulary_are_never_chosen():
    logits = np.append(LOGITS, np.float32(99))
    assert max(draws(sampler(LOGITS.size, seed=1), 50, logits)) < LOGITS.size


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_sample_damaged_logits_are_refused(value, temperature):
    logits = LOGITS.copy()
    logits[2] = value
    with pytest.raises(SamplingError, match=f"{value}.*qllama verify"):
        sampler(temperature=temperature).sample(logits, NOTHING)


def test_sample_every_token_forbidden_is_refused():
    forbid = dict.fromkeys(range(LOGITS.size), -math.inf)
    with pytest.raises(SamplingError, match="logit_bias forbids all that"):
        sampler(logit_bias=forbid).sample(LOGITS, NOTHING)


def test_sample_bias_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"logit_bias.*0\.\.5, found 6"):
        sampler(logit_bias={6: 1.0}).sample(LOGITS, NOTHING)


@pytest.mark.filterwarnings("error")
def test_sample_tiny_temperature_takes_the_likeliest_without_a_warning():
    assert set(draws(sampler(temperature=1e-320, seed=1), 20)) == {int(LOGITS.argmax())}


def test_sample_xtc_acts_with_its_probability():
    params = UNFILTERED | {"xtc_probability": 0.3, "xtc_threshold": 0.25, "top_k": 1, "top_p": 1}
    always, never = (sampler(seed=2, **params | {"xtc_probability": p}) for p in (1.0, 0.0))
    assert set(draws(always, 20)) == set(draws(never, 20)) == {1}  # one candidate is left alone
    some = sampler(seed=2, **params | {"top_k": 2})
    share = np.mean(np.array(draws(some, 4000)) == 1)
    # Token 1 has 4/7 of the two where XTC does not act, and nothing where it does.
    assert abs(share - 0.7 * 4 / 7) < 4 * math.sqrt(0.4 * 0.6 / 4000)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_sample_mirostat_holds_the_surprise_near_its_target(tau):
    rng = np.random.default_rng(3)
    probabilities = np.sort(rng.dirichlet(np.full(300, 0.2)))[::-1]
    logits = np.log(probabilities + 1e-9).astype(np.float32)
    learning = sampler(300, seed=1, **UNFILTERED, mirostat=2, mirostat_tau=tau)
    assert len(set(draws(learning, 3000, logits))) > 2
    # Each token moves mu by 0.1 of how far its surprise is off, so this is their mean.
    assert abs(2 * tau - learning._mu) / (0.1 * 3000) < 0.05


def test_sample_processors_come_first_and_see_the_tokens_so_far():
    seen = []

    def forbid_best(tokens, logits):
        seen.append(tokens.tolist())
        changed = logits.copy()
        changed[logits.argmax()] = -math.inf
        return changed

    greedy = sampler(
        temperature=0, logits_processors=[forbid_best, forbid_best], logit_bias={4: 1.0}
    )
    assert greedy.sample(LOGITS, np.array([5, 2], np.int32)) == 4
    assert seen == [[5, 2], [5, 2]]
    assert LOGITS.argmax() == 1


@pytest.mark.parametrize("returned", [None, np.zeros(5, np.float32), np.zeros((1, 6)), [0] * 6])
def test_sample_processor_that_returns_no_logits_is_refused(returned):
    odd = sampler(logits_processors=[lambda tokens, logits: returned])
    with pytest.raises(ValueError, match=r"logits_processors: expected logits of shape \(6,\)"):
        odd.sample(LOGITS, NOTHING)


def test_params_processor_that_cannot_be_called_is_refused():
    with pytest.raises(ValueError, match=r"logits_processors\[1\]: expected a callable, found 3"):
        SamplingParams(logits_processors=[len, 3])


def test_sample_dry_keeps_from_loops_up_to_a_breaker():
    history = np.array([1, 3, 4, 1, 3], np.int32)
    options = {"temperature": 0, "dry_multiplier": 9.0, "logit_bias": {4: 9.0}}
    assert sampler(**options | {"dry_multiplier": 0.0}).sample(LOGITS, history) == 4
    assert sampler(**options).sample(LOGITS, history) == 1
    texts = {3: "a: b"}
    params = SamplingParams(**options)
    with_text = Sampler(params, LOGITS.size, lambda token: texts.get(token, "x"))
    assert with_text.sample(LOGITS, history) == 4


def test_sample_dry_counts_the_last_n_tokens():
    history = np.array([1, 3, 4, 1, 3], np.int32)
    options = {"temperature": 0, "dry_multiplier": 9.0, "logit_bias": {4: 9.0}}
    found = [sampler(**options, dry_penalty_last_n=n).sample(LOGITS, history) for n in (4, 5, -1)]
    assert found == [4, 1, 1]
