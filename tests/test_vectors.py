"""Embeddings and scores, with real models."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_gguf import write_gguf

from converter.pipeline import convert
from qllama import Llama
from qllama.errors import ContextLengthError, EvaluationError
from qllama.format import QlmFile

TEXTS = ["The cat sleeps on the mat.", "A kitten naps on a rug.", "Stocks fell on Monday."]


@pytest.fixture(scope="module")
def llm(smollm2_q8):
    with Llama(smollm2_q8, n_ctx=256) as llm:
        yield llm


def test_embed_like_texts_are_near_each_other(llm):
    cat, kitten, stocks = llm.embed(TEXTS)
    assert cat @ kitten > max(cat @ stocks, kitten @ stocks)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_embed_is_the_same_to_the_bit_alone_and_among_others(llm, pooling):
    together = llm.embed([*TEXTS, TEXTS[0] * 20], pooling=pooling)
    for text, vector in zip(TEXTS, together, strict=False):
        (alone,) = llm.embed(text, pooling=pooling)
        np.testing.assert_array_equal(alone, vector)
    with Llama(llm._path, n_ctx=256, n_threads=1, n_batch=7) as other:
        again = other.embed([*TEXTS, TEXTS[0] * 20], pooling=pooling)
    np.testing.assert_array_equal(again, together)


def test_embed_leaves_the_conversation_as_it_was(llm):
    llm.generate("Once upon a time", max_tokens=0)
    n = len(llm.tokenize("Once upon a time"))
    llm.embed(TEXTS)
    assert llm.generate("Once upon a time there", max_tokens=0).timings.reused_tokens == n


def test_embed_bad_texts_are_refused_and_none_is_none(llm):
    with pytest.raises(ValueError, match=r"texts\[1\]: expected at least one token"):
        llm.embed(["a", ""])
    with pytest.raises(ContextLengthError, match=r"texts\[0\] has \d+ tokens, .* of 256"):
        llm.embed([TEXTS[0] * 100])
    assert llm.embed([]).shape == (0, llm.config.hidden_size)


def test_score_is_the_sum_of_what_the_logits_say(llm):
    text = "The capital of France is Paris. " * 30  # more than one slab
    ids = llm.tokenize(text)
    logits = llm.logits(ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = [logprobs[i, token] for i, token in enumerate(ids[1:])]
    found = llm.token_logprobs(text, top=2)
    assert [entry.token_id for entry in found] == ids[1:]
    # Differences of float64 numbers below 100: some of their 2**-46 are lost.
    np.testing.assert_allclose([entry.logprob for entry in found], expected, atol=2**-44)
    assert all(entry.top[0][1] >= entry.top[1][1] for entry in found)
    assert llm.score(text) == pytest.approx(sum(expected))
    assert llm.perplexity(text) == pytest.approx(math.exp(-np.mean(expected)))


def test_score_after_a_prompt_is_of_the_text_alone(llm):
    prompt = "The capital of France is"
    whole = llm.token_logprobs(" Paris.", prompt)
    assert [entry.token_id for entry in whole] == llm.tokenize(" Paris.", add_bos=False)
    assert llm.score(" Paris.", prompt) > llm.score(" Berlin.", prompt)
    parts = llm.score(prompt) + llm.score(" Paris.", prompt)
    assert parts == pytest.approx(llm.score(prompt + " Paris."))


def test_score_reuses_the_prompt_of_the_call_before(llm):
    prompt = "Which of these follows? " * 8
    scores = [llm.score(text, prompt) for text in (" One.", " Two.")]
    n = len(llm.tokenize(prompt))
    assert llm.generate(prompt, max_tokens=0).timings.reused_tokens == n - 1
    assert scores == [llm.score(text, prompt) for text in (" One.", " Two.")]


@pytest.mark.parametrize(("text", "prompt"), [("", ""), ("a", ""), ("", "some prompt")])
def test_score_of_nothing_is_refused(llm, text, prompt):
    with pytest.raises(EvaluationError, match="tokens to score"):
        llm.score(text, prompt)


def test_embed_states_are_what_the_output_head_reads(tmp_path):
    path = tmp_path / "tiny.qlm"
    convert(write_gguf(tmp_path / "tiny.gguf"), path, type="f32")
    ids = [5, 60, 7, 8, 200]
    with Llama(path) as llm, QlmFile.open(path) as file:
        (state,) = llm.embed([ids], pooling="last", normalize=False)
        logits = llm.logits(ids)[-1]
        head = file.matrix("model.embed_tokens.weight").astype(np.float64)
    # Sums of hidden_size float32 products, in whatever order: n * eps of their magnitudes.
    bound = state.size * np.finfo(np.float32).eps * (np.abs(head) @ np.abs(state))
    assert (np.abs(head @ state - logits) <= bound).all()
