"""`Llama` in programs: coroutines, threads, processes, cancellation, with real models."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest
from tiny_gguf import write_gguf

from converter.pipeline import convert
from qllama import Llama

PROMPT = list(range(10, 50))
OPTIONS = {"temperature": 1.0, "top_k": 0, "seed": 4, "max_tokens": 12}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    convert(write_gguf(directory / "tiny.gguf"), directory / "tiny.qlm", type="q8")
    return directory / "tiny.qlm"


@pytest.fixture(scope="module")
def llm(path):
    with Llama(path) as llm:
        yield llm


def answer_in_child(llm, prompt):
    return llm.generate(prompt, **OPTIONS)


def test_llama_pickled_opens_the_same_file_in_the_same_way(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with Llama("tiny.qlm", n_ctx=64, n_threads=1, kv_type="q8", chat_template="{{ 1 }}") as llm:
        expected = llm.generate(PROMPT, **OPTIONS)
        pickled = pickle.dumps(llm)
    monkeypatch.chdir(path.parents[1])
    with pickle.loads(pickled) as again:
        assert (again.n_ctx, again.chat_template) == (64, "{{ 1 }}")
        assert again.generate(PROMPT, **OPTIONS).token_ids == expected.token_ids
        assert repr(again) == repr(llm).replace(", closed>", ">")


def test_llama_answers_in_a_pool_of_processes_as_here(llm):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        found = pool.submit(answer_in_child, llm, PROMPT).result()
    assert found == llm.generate(PROMPT, **OPTIONS)
    assert found.token_ids == llm.generate(PROMPT, **OPTIONS).token_ids


def test_llama_repr_says_what_is_open(path):
    llm = Llama(path, n_ctx=64, n_threads=1)
    assert repr(llm) == f"<Llama {path}: llama, 2 layers, 64 tokens of context, 1 threads>"
    assert "<td>64 tokens, keys and values in f16</td>" in llm._repr_html_()
    llm.close()
    assert repr(llm).endswith(", closed>")


def test_completion_html_shows_its_text_and_hides_nothing(llm):
    answer = llm.generate(PROMPT, **OPTIONS)
    marked = type(answer)("<b>\n&", *answer.__getnewargs__()[1:])
    assert "&lt;b&gt;\n&amp;" in marked._repr_html_()
    assert "12 tokens, length" in marked._repr_html_()


def test_llama_threads_and_coroutines_at_once_answer_as_if_alone(path):
    prompts = [[7 + i, *PROMPT[i:]] for i in range(6)]
    with Llama(path) as llm:
        alone = [llm.generate(prompt, **OPTIONS).token_ids for prompt in prompts]
    found = {}
    with Llama(path, cache_bytes=0) as llm:

        def streamed(i):
            stream = llm.generate(prompts[i], stream=True, **OPTIONS)
            found[i] = sum((piece.token_ids for piece in stream), ())

        def whole(i):
            found[i] = llm.generate(prompts[i], **OPTIONS).token_ids

        async def coroutines():
            async def one(i):
                pieces = [piece async for piece in llm.agenerate(prompts[i], **OPTIONS)]
                found[i] = sum((piece.token_ids for piece in pieces), ())

            await asyncio.gather(one(4), one(5))

        jobs = [(streamed, 0), (streamed, 1), (whole, 2), (whole, 3)]
        threads = [threading.Thread(target=work, args=(i,)) for work, i in jobs]
        for thread in threads:
            thread.start()
        asyncio.run(coroutines())
        for thread in threads:
            thread.join()
    assert [found[i] for i in range(6)] == alone


def test_llama_cancel_in_a_prompt_ends_between_layers_and_leaves_all_well(path):
    long = [10 + i % 200 for i in range(100)]
    with Llama(path) as llm:
        expected = llm.generate(long, **OPTIONS).token_ids
    with Llama(path) as llm:
        llm._engine._pace.n_layers = lambda n_tokens: 1  # as of a slow machine
        stream = llm.generate(long, stream=True, **OPTIONS)
        checks = []

        def check():
            checks.append(len(checks))
            if len(checks) == 3:  # before the step, its first layer, its second one
                llm.cancel()
            original()

        original = stream._interrupt.check
        stream._interrupt.check = check
        assert [(piece, piece.finish_reason) for piece in stream] == [("", "cancelled")]
        assert len(checks) == 3
        assert llm.generate(long, **OPTIONS).token_ids == expected


def test_real_model_coroutines_answer_while_the_loop_runs(smollm2_q8):
    async def main(llm):
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        question = [{"role": "user", "content": "What is the capital of France?"}]
        answer = await llm.achat(question, temperature=0, max_tokens=10)
        ticking.cancel()
        return answer, ticks

    with Llama(smollm2_q8, n_ctx=256) as llm:
        answer, ticks = asyncio.run(main(llm))
        assert ticks > answer.completion_tokens
        question = [{"role": "user", "content": "What is the capital of France?"}]
        assert llm.chat(question, temperature=0, max_tokens=10) == answer


def test_real_model_timeout_ends_a_long_answer(smollm2_q8):
    with Llama(smollm2_q8, n_ctx=256) as llm:
        answer = llm.generate("Once upon a time", temperature=0, timeout=0.0)
        assert (answer, answer.finish_reason) == ("", "timeout")
