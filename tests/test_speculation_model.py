"""Speculative decoding with the real small model: the same answers, in fewer steps."""

from __future__ import annotations

import pytest

from qllama import Llama
from qllama.generation.expectation import StepCosts

FABLE = (
    "The tortoise and the hare met at the old mill on Monday morning. The hare laughed at the "
    "tortoise and said that nobody so slow should ever leave his garden."
)
CODE = (
    "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n"
)
PROMPTS = {
    "rewriting": f"Rewrite this text with 'turtle' in place of 'tortoise'.\n\n{FABLE}",
    "code": f"Complete this code and return it whole.\n\n```python\n{CODE}```",
    "free": "Why is the sky blue?",
}


@pytest.fixture(scope="module")
def llm(smollm2_q4):
    with Llama(smollm2_q4, n_ctx=512) as llm:
        yield llm


@pytest.fixture(autouse=True)
def constant_costs(monkeypatch):
    """Steps take what they usually do, whatever the clock says."""
    known = {"seconds": 1.0}
    monkeypatch.setattr(StepCosts, "measured", lambda self, *_: self.__dict__.update(known))


def ask(llm, prompt, **options):
    return llm.chat([{"role": "user", "content": PROMPTS[prompt]}], max_tokens=40, **options)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 0, "repeat_penalty": 1.1},
        {"temperature": 0.8, "seed": 1},
        {"temperature": 1.2, "top_p": 1.0, "min_p": 0.0, "seed": 2, "presence_penalty": 0.5},
    ],
    ids=str,
)
def test_real_model_speculation_changes_no_token(llm, prompt, options):
    plain = ask(llm, prompt, draft_max=0, logprobs=2, **options)
    answer = ask(llm, prompt, logprobs=2, **options)
    assert answer.token_ids == plain.token_ids
    assert answer.logprobs == plain.logprobs
    assert (answer, answer.finish_reason) == (plain, plain.finish_reason)
    assert plain.timings.guessed_tokens == 0


def test_real_model_guesses_of_a_rewritten_text_come_true(llm):
    timings = ask(llm, "rewriting", temperature=0).timings
    assert timings.accepted_tokens > 10
    assert timings.acceptance > 0.5


def test_real_model_answers_of_one_batch_are_those_of_speculation_alone(llm):
    both = llm.generate(FABLE, n=2, max_tokens=12, seed=5)
    alone = [llm.generate(FABLE, max_tokens=12, seed=5 + i) for i in range(2)]
    assert [answer.token_ids for answer in both] == [answer.token_ids for answer in alone]
    assert both[0].timings.guessed_tokens == 0


def test_real_model_next_turn_reuses_what_was_right(llm):
    messages = [{"role": "user", "content": PROMPTS["rewriting"]}]
    answer = llm.chat(messages, max_tokens=40, temperature=1.0, seed=1)
    assert answer.timings.accepted_tokens < answer.timings.guessed_tokens  # some were wrong
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Again."}]
    again = llm.chat(messages, max_tokens=10, temperature=0)
    held = answer.prompt_tokens + answer.completion_tokens
    assert again.timings.reused_tokens >= held - 1
    with Llama(llm._path, n_ctx=512) as fresh:
        assert fresh.chat(messages, max_tokens=10, temperature=0, draft_max=0) == again


def test_real_model_hooks_are_given_an_answer_token_by_token(llm):
    positions = []

    def noting(values, at):
        positions.append(list(at.positions))

    with llm.hooked({"layers.0.input": noting}) as hooked:
        prompt = llm.tokenize_chat([{"role": "user", "content": PROMPTS["rewriting"]}])
        answer = hooked.generate(prompt, max_tokens=20, temperature=0)
    assert answer.timings.guessed_tokens == 0
    assert positions[-19:] == [[len(prompt) + i] for i in range(19)]
