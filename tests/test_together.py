"""Several answers decoded as one batch: each the same to the bit as alone."""

from __future__ import annotations

import pytest
from tiny_gguf import write_gguf

from converter.pipeline import convert
from qllama import Llama

PROMPT = list(range(10, 50))
OPTIONS = {"temperature": 1.0, "top_k": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    gguf = write_gguf(directory / "tiny.gguf", context_length=640)
    convert(gguf, directory / "tiny.qlm", type="q8")
    return directory / "tiny.qlm"


@pytest.mark.parametrize("n_batch", [1, 256])
@pytest.mark.parametrize("kv_type", ["f16", "q8"])
def test_together_every_answer_is_the_one_it_would_be_alone(path, kv_type, n_batch):
    prompt = [10 + i % 200 for i in range(300)]  # more than a chunk of the cache
    with Llama(path, kv_type=kv_type, n_batch=n_batch) as llm:
        # Answers that end at different times: half of the tokens end one.
        options = OPTIONS | {"stop_token_ids": range(0, 270, 4), "logprobs": 2}
        together = llm.generate(prompt, n=5, seed=3, **options)
        alone = [llm.generate(prompt, seed=3 + i, **options) for i in range(5)]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert len({a.completion_tokens for a in alone}) > 1
    for one, other in zip(together, alone, strict=True):
        assert (one, one.finish_reason, one.seed) == (other, other.finish_reason, other.seed)
        assert one.logprobs == other.logprobs


def test_together_evaluates_the_prompt_once_and_reuses_what_is_held(path):
    done = []
    with Llama(path, n_batch=16) as llm:
        llm.generate(PROMPT[:20], max_tokens=0)
        answers = llm.generate(PROMPT, n=3, on_progress=lambda *call: done.append(call), **OPTIONS)
        assert done[-1][1] == 20
        assert [a.timings.reused_tokens for a in answers] == [20] * 3
        # The conversation goes on from the prompt.
        assert llm.generate([*PROMPT, 7], max_tokens=0).timings.reused_tokens == len(PROMPT)


def test_together_answers_that_have_no_room_end_at_once(path):
    with Llama(path) as llm:
        answers = llm.generate(PROMPT, n=2, max_tokens=0)
    assert [(a, a.finish_reason, a.token_ids) for a in answers] == [("", "length", ())] * 2


@pytest.mark.parametrize("when", ["before", "prompt", "answers"])
def test_together_cancelled_at_any_time_ends_with_what_there_is(path, when):
    with Llama(path, n_batch=16) as llm:
        steps = []

        def cancel(*_):
            llm.cancel()

        def processor(tokens, logits):
            steps.append(tokens.size)
            if when == "answers" and len(steps) == 5:
                llm.cancel()
            return logits

        how = OPTIONS | {"timeout": 0.0} if when == "before" else OPTIONS
        on_progress = cancel if when == "prompt" else None
        answers = llm.generate(
            PROMPT, n=2, on_progress=on_progress, logits_processors=[processor], seed=1, **how
        )
        reason = "timeout" if when == "before" else "cancelled"
        assert [a.finish_reason for a in answers] == [reason] * 2
        assert [a.completion_tokens for a in answers] == ([3, 3] if when == "answers" else [0, 0])
        assert llm.generate(PROMPT, seed=1, **OPTIONS).completion_tokens == 12


@pytest.mark.parametrize("bad", [{"n": 0}, {"n": 257}, {"n": 2, "stream": True}])
def test_together_bad_count_is_refused(path, bad):
    with Llama(path) as llm, pytest.raises(ValueError, match="n: expected 1 to 256"):
        llm.generate(PROMPT, **bad)


def test_real_model_answers_together_are_those_alone(smollm2_q8):
    with Llama(smollm2_q8, n_ctx=256) as llm:
        together = llm.generate("Once upon a time", n=3, seed=5, max_tokens=10)
        alone = [llm.generate("Once upon a time", seed=5 + i, max_tokens=10) for i in range(3)]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert len(set(together)) > 1
