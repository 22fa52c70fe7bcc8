"""What samplers and logprobs promise, with the real small model."""

from __future__ import annotations

import numpy as np
import pytest

from qllama import Llama

REPETITIVE = "The cat sat. The cat sat. The cat sat. The cat"


@pytest.fixture(scope="module")
def llm(smollm2_q8):
    with Llama(smollm2_q8, n_ctx=256) as llm:
        yield llm


@pytest.mark.parametrize(
    "option",
    [
        {"typical_p": 0.3},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"mirostat": 2, "mirostat_tau": 3.0},
        {"dry_multiplier": 2.0, "temperature": 0},
    ],
    ids=lambda option: next(iter(option)),
)
def test_real_model_sampler_changes_the_answer_and_its_seed_repeats_it(llm, option):
    how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 12, "seed": 7}
    plain = {**how, "temperature": option.get("temperature", 1.0)}
    answers = [llm.generate(REPETITIVE, **{**how, **option}) for _ in range(2)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].token_ids != llm.generate(REPETITIVE, **plain).token_ids


def test_real_model_dry_breaks_the_loop_that_greedy_falls_into(llm):
    greedy = llm.generate(REPETITIVE, temperature=0, max_tokens=2)
    assert greedy == " sat."
    assert llm.generate(REPETITIVE, temperature=0, max_tokens=2, dry_multiplier=5) != greedy
    free = llm.generate(
        REPETITIVE, temperature=0, max_tokens=2, dry_multiplier=5, dry_sequence_breakers=["at"]
    )
    assert free == greedy


def test_real_model_logprobs_are_those_of_its_logits(llm):
    answer = llm.generate("The capital of France is", temperature=0, max_tokens=4, logprobs=3)
    ids = [*llm.tokenize("The capital of France is"), *answer.token_ids]
    logits = llm.logits(ids)[-5:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert [entry.token_id for entry in answer.logprobs] == list(answer.token_ids)
    for entry, row in zip(answer.logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=2**-44)
        best = np.argsort(-row, kind="stable")[:3]
        assert [token for token, _ in entry.top] == best.tolist()
        np.testing.assert_allclose([p for _, p in entry.top], row[best], atol=2**-44)
    pieces = llm.generate(
        "The capital of France is", temperature=0, max_tokens=4, logprobs=3, stream=True
    )
    assert sum((piece.logprobs for piece in pieces), ()) == answer.logprobs


def test_real_model_processor_decides(llm):
    paris = llm.tokenize(" Berlin", add_bos=False)[0]

    def only(tokens, logits):
        changed = np.full_like(logits, -np.inf)
        changed[paris] = 0
        return changed

    assert llm.generate("It is", max_tokens=2, logits_processors=[only]) == " Berlin" * 2
