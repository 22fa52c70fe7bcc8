"""Guesses of a second model, and who else may guess, with the real small model."""

from __future__ import annotations

import pickle

import pytest

from qllama import Llama, LlamaPromptLookupDecoding
from qllama.errors import TokenizerError
from qllama.generation.expectation import StepCosts
from qllama.generation.second_model import SecondModel

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture(autouse=True)
def constant_costs(monkeypatch):
    """Guesses of a second model take no time, whatever the clock says."""
    known = {"seconds": 1.0}
    monkeypatch.setattr(StepCosts, "measured", lambda self, *_: self.__dict__.update(known))
    free = property(lambda self: 0.0, lambda self, seconds: None)
    monkeypatch.setattr(SecondModel, "seconds", free, raising=False)


@pytest.fixture(scope="module")
def plain(smollm2_q8):
    with Llama(smollm2_q8, n_ctx=256) as llm:
        yield llm


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"temperature": 0.8, "seed": 3}, {"temperature": 0, "logprobs": 2}],
    ids=str,
)
def test_draft_model_changes_no_token_and_is_often_right(plain, smollm2_q8, smollm2_q4, options):
    expected = plain.chat(QUESTION, max_tokens=30, draft_max=0, **options)
    with Llama(smollm2_q8, n_ctx=256, draft_model=smollm2_q4) as llm:
        answer = llm.chat(QUESTION, max_tokens=30, **options)
        again = llm.chat(QUESTION, max_tokens=30, **options)
    assert answer.token_ids == again.token_ids == expected.token_ids
    assert answer.logprobs == expected.logprobs
    assert answer.timings.guessed_tokens > 10
    assert answer.timings.acceptance > 0.6


def test_draft_model_may_be_open_already_and_stays_open(smollm2_q8, smollm2_q4):
    with Llama(smollm2_q4, n_ctx=256) as small:
        with Llama(smollm2_q8, n_ctx=256, draft_model=small) as llm:
            assert llm.chat(QUESTION, max_tokens=10, temperature=0).timings.accepted_tokens > 0
        assert small.chat(QUESTION, max_tokens=3)


def test_draft_model_with_less_context_guesses_as_long_as_it_can(plain, smollm2_q8, smollm2_q4):
    how = {"max_tokens": 30, "temperature": 0}
    n_prompt = len(plain.tokenize_chat(QUESTION))
    with (
        Llama(smollm2_q4, n_ctx=n_prompt + 8) as small,
        Llama(smollm2_q8, n_ctx=256, draft_model=small) as llm,
    ):
        answer = llm.chat(QUESTION, **how)
    assert 0 < answer.timings.guessed_tokens <= 9
    assert answer == plain.chat(QUESTION, draft_max=0, **how)


def test_draft_model_that_is_its_own_is_opened_by_a_pickle_too(smollm2_q8, smollm2_q4):
    with (
        Llama(smollm2_q8, n_ctx=256, draft_model=smollm2_q4) as llm,
        pickle.loads(pickle.dumps(llm)) as twin,
    ):
        assert twin.chat(QUESTION, max_tokens=10, temperature=0).timings.accepted_tokens > 0


def test_draft_model_cancelled_in_its_prompt_ends_the_answer(smollm2_q8, smollm2_q4):
    with Llama(smollm2_q8, n_ctx=256, draft_model=smollm2_q4) as llm:
        stream = llm.generate("Once upon a time", stream=True, temperature=0)
        begun = [next(stream) for _ in range(3)]
        stream.cancel()
        assert [piece.finish_reason for piece in [*begun, *stream]] == [None] * 3 + ["cancelled"]


def test_draft_model_of_another_vocabulary_is_refused_by_the_token(
    smollm2_q8, smollm2_q4, monkeypatch
):
    with Llama(smollm2_q4, n_ctx=64) as small:
        spelling = type(small._tokenizer).token_text
        monkeypatch.setattr(
            type(small._tokenizer),
            "token_text",
            lambda self, token: (
                "odd" if self is small._tokenizer and token == 7 else spelling(self, token)
            ),
        )
        with pytest.raises(TokenizerError, match=r"expected token 7 to be .* found 'odd'"):
            Llama(smollm2_q8, n_ctx=64, draft_model=small)


def test_draft_model_that_is_none_is_refused(smollm2_q4):
    with pytest.raises(TypeError, match=r"draft_model: expected the path of a model, .* found 3"):
        Llama(smollm2_q4, draft_model=3)


def test_draft_model_of_llama_cpp_python_by_its_name(smollm2_q4):
    text = "one two three four five six seven. " * 3
    few = LlamaPromptLookupDecoding(max_ngram_size=2, num_pred_tokens=1)
    with Llama(smollm2_q4, n_ctx=256, draft_model=few) as llm:
        answer = llm.generate(text, max_tokens=20, temperature=0)
        assert 0 < answer.timings.guessed_tokens <= 10
        assert answer == llm.generate(text, max_tokens=20, temperature=0, draft_max=0)
