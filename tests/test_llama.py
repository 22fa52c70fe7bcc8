"""`Llama` on the real engine: what reuse, batches and threads must never change."""

from __future__ import annotations

import pytest
from tiny_gguf import write_gguf

from converter.pipeline import convert
from qllama import Llama

PROMPT = list(range(10, 50))
N_TOKENS = 266  # of the tiny model's tokenizer; its embedding has 270 rows
OPTIONS = {"temperature": 1.0, "top_k": 0, "seed": 4, "max_tokens": 12}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    convert(write_gguf(directory / "tiny.gguf"), directory / "tiny.qlm", type="q8")
    return directory / "tiny.qlm"


@pytest.fixture
def llm(path):
    with Llama(path) as llm:
        yield llm


@pytest.fixture(scope="module")
def alone(path):
    """The answer that nothing has come before."""
    with Llama(path) as llm:
        return llm.generate(PROMPT, **OPTIONS)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("n_batch", [1, 5, 256])
def test_llama_answer_does_not_depend_on_threads_and_batches(path, alone, n_threads, n_batch):
    with Llama(path, n_threads=n_threads, n_batch=n_batch) as llm:
        assert llm.generate(PROMPT, **OPTIONS).token_ids == alone.token_ids


@pytest.mark.parametrize("n_shared", [0, 1, 20, len(PROMPT)])
def test_llama_answer_does_not_depend_on_what_is_reused(llm, alone, n_shared):
    llm.generate([*PROMPT[:n_shared], 200, 201], max_tokens=0)
    answer = llm.generate(PROMPT, **OPTIONS)
    assert answer.token_ids == alone.token_ids
    # The last token is always evaluated.
    assert answer.timings.reused_tokens == min(n_shared, len(PROMPT) - 1)


def test_llama_streams_that_take_turns_answer_as_if_alone(llm, alone):
    streams = [llm.generate(PROMPT, stream=True, **OPTIONS) for _ in range(2)]
    other = llm.generate([7, 8, 9], stream=True, **OPTIONS)
    while any(stream.finish_reason is None for stream in streams):
        for stream in (*streams, other):
            next(stream, None)
    assert [stream.token_ids for stream in streams] == [alone.token_ids] * 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_llama_interrupted_in_the_prompt_answers_the_next_call_right(path, alone, error):
    def interrupt(done, total):
        raise error

    with Llama(path, n_batch=16) as llm:
        with pytest.raises(error):
            llm.generate(PROMPT, on_progress=interrupt)
        answer = llm.generate(PROMPT, **OPTIONS)
    assert answer.token_ids == alone.token_ids
    assert answer.timings.reused_tokens == 16


def test_llama_logits_are_those_that_generation_sees(llm):
    answer = llm.generate(PROMPT, temperature=0, max_tokens=8)
    logits = llm.logits([*PROMPT, *answer.token_ids])
    # Rows beyond the tokenizer's vocabulary stand for no token.
    best = logits[len(PROMPT) - 1 : -1, :N_TOKENS].argmax(axis=1)
    assert tuple(best.tolist()) == answer.token_ids


def test_llama_real_model_knows_the_capital_and_reuses_the_conversation(smollm2_q8):
    with Llama(smollm2_q8, n_ctx=512) as llm:
        assert llm.generate("The capital of France is", temperature=0, max_tokens=1) == " Paris"
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        first = llm.chat(messages, max_tokens=20)
        messages += [
            {"role": "assistant", "content": first},
            {"role": "user", "content": "Thank you!"},
        ]
        second = llm.chat(messages, max_tokens=1)
    assert second.timings.reused_tokens >= first.prompt_tokens
