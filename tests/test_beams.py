"""Beam search, against trying everything."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_gguf import write_gguf

from converter.pipeline import convert
from qllama import Llama

PROMPT = list(range(10, 30))
N_TOKENS = 266  # of the tiny model's tokenizer
ENDS = (0, 2)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    convert(write_gguf(directory / "tiny.gguf"), directory / "tiny.qlm", type="q8")
    with Llama(directory / "tiny.qlm") as llm:
        yield llm


def logprobs(llm, tokens):
    row = llm.logits(tokens)[-1].astype(np.float64)
    return (row - np.log(np.exp(row).sum()))[:N_TOKENS]


@pytest.fixture(scope="module")
def everything(llm):
    """Every sequence of two tokens, or of one that ends, and its logarithm."""
    first = logprobs(llm, PROMPT)
    found = {(end,): first[end] for end in ENDS}
    for token in set(range(N_TOKENS)) - set(ENDS):
        second = logprobs(llm, [*PROMPT, token])
        found |= {(token, i): first[token] + second[i] for i in range(N_TOKENS)}
    return found


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_search_with_a_beam_a_token_finds_what_trying_everything_finds(
    llm, everything, penalty
):
    found = llm.beam_search(PROMPT, n_beams=256, max_tokens=2, length_penalty=penalty)
    ranked = sorted(everything, key=lambda t: -everything[t] / len(t) ** penalty)
    assert [answer.token_ids for answer in found[:50]] == ranked[:50]
    np.testing.assert_allclose(
        [sum(entry.logprob for entry in answer.logprobs) for answer in found[:50]],
        [everything[tokens] for tokens in ranked[:50]],
        atol=2**-44,
    )


def test_beam_search_with_one_beam_is_greedy(llm):
    greedy = llm.generate(PROMPT, temperature=0, max_tokens=10)
    (found,) = llm.beam_search(PROMPT, n_beams=1, max_tokens=10)
    assert found.token_ids == greedy.token_ids
    assert (found, found.finish_reason) == (greedy, greedy.finish_reason)


@pytest.mark.parametrize("n_beams", [2, 5])
def test_beam_search_scores_are_those_of_the_text(llm, n_beams):
    answers = llm.beam_search(PROMPT, n_beams=n_beams, max_tokens=6, length_penalty=0.7)
    scores = []
    for answer in answers:
        total = sum(
            logprobs(llm, [*PROMPT, *answer.token_ids[:i]])[token]
            for i, token in enumerate(answer.token_ids)
        )
        assert sum(entry.logprob for entry in answer.logprobs) == pytest.approx(total, abs=2**-40)
        scores.append(total / len(answer.token_ids) ** 0.7)
    assert scores == sorted(scores, reverse=True)
    assert len({answer.token_ids for answer in answers}) == n_beams


def test_beam_search_of_nothing_or_too_much_is_refused(llm):
    for option in ({"n_beams": 0}, {"n_beams": 257}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected"):
            llm.beam_search(PROMPT, **{"max_tokens": 2} | option)


def test_real_model_beams_are_at_least_as_likely_as_greedy(smollm2_q8):
    with Llama(smollm2_q8, n_ctx=256) as llm:
        greedy = llm.generate("The weather today is", temperature=0, max_tokens=8, logprobs=0)
        best, *others = llm.beam_search("The weather today is", n_beams=4, max_tokens=8)
    score = sum(entry.logprob for entry in greedy.logprobs) / len(greedy.token_ids)
    found = sum(entry.logprob for entry in best.logprobs) / len(best.token_ids)
    assert found >= score
    assert len(others) == 3


def test_beam_search_of_a_form_finds_all_that_have_it_likeliest_first(llm):
    texts = {a + b + c for a in "ab" for b in "cd" for c in ("", "e")}
    found = llm.beam_search(PROMPT, n_beams=40, max_tokens=9, length_penalty=0, choice=[*texts])
    assert {str(answer) for answer in found} == texts
    assert {answer.finish_reason for answer in found} == {"stop"}
    sums = [sum(entry.logprob for entry in answer.logprobs) for answer in found]
    assert sums == sorted(sums, reverse=True)
    for answer, total in zip(found[:6], sums, strict=False):
        so_far = [[*PROMPT, *answer.token_ids[:n]] for n in range(len(answer.token_ids))]
        single = [
            logprobs(llm, tokens)[token]
            for tokens, token in zip(so_far, answer.token_ids, strict=True)
        ]
        assert total == pytest.approx(sum(single), abs=2**-40)


def test_beam_search_of_a_form_with_one_beam_is_greedy(llm):
    form = {"regex": "[a-z]{3}=[0-9]{4}"}
    greedy = llm.generate(PROMPT, temperature=0, **form)
    (found,) = llm.beam_search(PROMPT, n_beams=1, **form)
    assert (found, found.token_ids) == (greedy, greedy.token_ids)
    assert found.finish_reason == "stop"
