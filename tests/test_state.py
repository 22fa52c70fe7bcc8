"""Saved states on the real engine: whoever goes on from one gets the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_gguf import write_gguf

from converter.pipeline import convert
from qllama import Llama
from qllama.errors import StateError

PROMPT = list(range(10, 50))
LONG = [10 + i % 200 for i in range(300)]
GREEDY = {"temperature": 0, "max_tokens": 6}
each_type = pytest.mark.parametrize("kv_type", ["f16", "q8"])


def long_gguf(directory, **changes):
    """A tiny model whose context takes several chunks of the cache."""
    path = directory / "tiny.gguf"
    return write_gguf(path, context_length=640, **changes)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    convert(long_gguf(directory), directory / "tiny.qlm", type="q8")
    return directory / "tiny.qlm"


@each_type
@pytest.mark.parametrize("prompt", [PROMPT[:3], PROMPT, LONG], ids=len)
def test_load_state_goes_on_with_the_same_bits(path, kv_type, prompt):
    with Llama(path, kv_type=kv_type) as llm:
        llm.generate(prompt, max_tokens=0)
        state = llm.save_state()
        expected = llm.generate([*prompt, 60, 61], temperature=1, seed=4, max_tokens=12)
    with Llama(path, kv_type=kv_type) as llm:
        # What the slot held before must not show, nor must its positions past the state.
        llm.generate(list(reversed(LONG)), max_tokens=0)
        llm.load_state(state)
        found = llm.generate([*prompt, 60, 61], temperature=1, seed=4, max_tokens=12)
        assert found.token_ids == expected.token_ids
        assert found.timings.reused_tokens == len(prompt)
        assert llm.save_state()[:8] == state[:8]


def test_save_state_bytes_depend_on_the_text_alone(path):
    with Llama(path) as llm:
        llm.generate(PROMPT, max_tokens=0)
        state = llm.save_state()
        llm.generate(LONG, max_tokens=0)
        llm.generate(PROMPT, max_tokens=0)
        assert llm.save_state() == state
        llm.load_state(state)
        assert llm.save_state() == state


def test_save_state_before_any_text_is_an_empty_one(path):
    with Llama(path) as llm:
        state = llm.save_state()
        llm.generate(PROMPT, max_tokens=0)
        llm.load_state(state)
        assert llm.generate(PROMPT, max_tokens=0).timings.reused_tokens == 0


def test_state_file_holds_the_same_bytes_and_is_replaced_whole(path, tmp_path):
    target = tmp_path / "talk.state"
    target.write_bytes(b"an older one")
    with Llama(path) as llm:
        llm.generate(PROMPT, max_tokens=0)
        assert llm.save_state(target) is None
        assert target.read_bytes() == llm.save_state()
        llm.load_state(str(target))
    assert [file.name for file in tmp_path.iterdir()] == ["talk.state"]


def test_state_file_that_cannot_be_written_or_read_is_named(path, tmp_path):
    with Llama(path) as llm:
        for call in (llm.save_state, llm.load_state):
            with pytest.raises(StateError, match=r"nowhere.talk\.state: cannot be"):
                call(tmp_path / "nowhere" / "talk.state")


def test_load_state_of_another_model_cache_type_or_window_is_refused(path, tmp_path):
    other = tmp_path / "other.qlm"
    convert(long_gguf(tmp_path, seed=1), other, type="q8")
    with Llama(path) as llm:
        llm.generate(PROMPT, max_tokens=0)
        state = llm.save_state()
    for model, options, error in (
        (other, {}, "of another model"),
        (path, {"kv_type": "q8"}, "kv_type: expected 'q8', found 'f16'"),
        (path, {"n_ctx": 32}, "40 tokens, more than the context window of 32"),
    ):
        with Llama(model, **options) as llm:
            llm.generate([5, 6, 7], max_tokens=0)
            with pytest.raises(StateError, match=error):
                llm.load_state(state)
            assert llm.generate([5, 6, 7, 8], max_tokens=0).timings.reused_tokens == 3


def test_alternating_conversations_evaluate_only_what_is_new(path):
    a, b = [*PROMPT], [200, *PROMPT]
    answers = []
    for cache_bytes in (0, 2**28):
        with Llama(path, cache_bytes=cache_bytes) as llm:
            x, y, found = [*a], [*b], []
            for _ in range(3):
                for text in (x, y):
                    answer = llm.generate(text, **GREEDY)
                    text += [*answer.token_ids, 70]
                    found.append((answer.token_ids, answer.timings.reused_tokens))
        answers.append(found)
    without, with_memory = answers
    assert [ids for ids, _ in without] == [ids for ids, _ in with_memory]
    assert [n for _, n in without] == [0] * 6
    assert [n for _, n in with_memory] == [0, 0, 45, 46, 52, 53]


def test_real_model_chat_goes_on_from_its_state_to_the_bit(smollm2_q8, tmp_path):
    messages = [{"role": "user", "content": "Invent a name for a tortoise and say why."}]
    how = {"temperature": 1.5, "seed": 3}
    thanks = {"role": "user", "content": "Thank you!"}
    with Llama(smollm2_q8, n_ctx=512) as llm:
        # Hot enough that the answer is not tokenized as its text would be.
        first = llm.chat(messages, max_tokens=40, **how)
        messages += [{"role": "assistant", "content": first}, thanks]
        llm.save_state(tmp_path / "talk.state")
        expected = llm.chat(messages, max_tokens=20, **how)
        logits = llm.logits([*llm.tokenize("Paris"), *expected.token_ids])
    with Llama(smollm2_q8, n_ctx=512) as llm:
        llm.load_state(tmp_path / "talk.state")
        found = llm.chat(messages, max_tokens=20, **how)
        assert found.token_ids == expected.token_ids
        assert found.timings.reused_tokens == expected.timings.reused_tokens
        again = llm.logits([*llm.tokenize("Paris"), *expected.token_ids])
        np.testing.assert_array_equal(again, logits)
