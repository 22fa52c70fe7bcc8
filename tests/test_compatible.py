"""One script for two libraries: llama-cpp-python's arguments in, the OpenAI API's dicts out."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest

from qllama import Llama

# Names and defaults of llama_cpp/llama.py at commit 3691546f (August 2026).
SAMPLING = {"top_p": 0.95, "min_p": 0.05, "typical_p": 1.0, "top_k": 40}
PENALTIES = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repeat_penalty": 1.0}
REST = {
    **{"stream": False, "seed": None, "tfs_z": 1.0, "model": None},
    **{"mirostat_mode": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1},
    **{"logits_processor": None, "grammar": None, "logit_bias": None},
}
LLAMA_CPP_PYTHON = {
    "create_completion": {
        "prompt": inspect.Parameter.empty,
        **{"suffix": None, "max_tokens": 16, "temperature": 0.8, "logprobs": None, "echo": False},
        **{"stopping_criteria": None, **SAMPLING, **PENALTIES, **REST},
    },
    "create_chat_completion": {
        "messages": inspect.Parameter.empty,
        **{"functions": None, "function_call": None, "tools": None, "tool_choice": None},
        **{"temperature": 0.2, "response_format": None, "max_tokens": None},
        **{"logprobs": None, "top_logprobs": None, **SAMPLING, **PENALTIES, **REST},
    },
    "create_embedding": {"input": inspect.Parameter.empty, "model": None},
}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "max_tokens": 6}
PROMPT = "One, two, three, four,"


@pytest.fixture(scope="module")
def llm(smollm2_q8):
    with Llama(smollm2_q8, n_ctx=256) as llm:
        yield llm


@pytest.mark.parametrize("method", LLAMA_CPP_PYTHON)
def test_arguments_and_defaults_are_those_of_llama_cpp_python(method):
    parameters = dict(inspect.signature(getattr(Llama, method)).parameters)
    del parameters["self"]
    found = {name: p.default for name, p in parameters.items()}
    if "stop" in found:
        assert list(found.pop("stop")) == []
    assert found == LLAMA_CPP_PYTHON[method]
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_constructor_takes_what_changes_no_result(smollm2_q8, llm):
    given = {"n_gpu_layers": -1, "n_ubatch": 64, "flash_attn": True, "logits_all": True}
    with Llama(smollm2_q8, n_ctx=256, **given) as other:
        assert other(PROMPT, **GREEDY)["choices"] == llm(PROMPT, **GREEDY)["choices"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("seed", "seed: qllama does not offer it; give each call its seed"),
        ("chat_format", "chat_format: .* chat_template takes another"),
        ("rope_freq_base", "unexpected keyword argument 'rope_freq_base'"),
    ],
)
def test_constructor_refuses_the_rest_by_name(smollm2_q8, argument, message):
    with pytest.raises(TypeError, match=message):
        Llama(smollm2_q8, **{argument: 1})


def test_completion_has_the_shape_of_the_openai_api(llm):
    found = llm.create_completion(PROMPT, stop=["\n\n"], model="small", **GREEDY)
    plain = llm.generate(PROMPT, stop="\n\n", **GREEDY)
    assert json.loads(json.dumps(found)) == found
    assert found.pop("id").startswith("cmpl-")
    assert found.pop("created") > 1.6e9
    n = len(llm.tokenize(PROMPT))
    assert found == {
        "object": "text_completion",
        "model": "small",
        "choices": [{"text": plain, "index": 0, "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": n, "completion_tokens": 6, "total_tokens": n + 6},
    }
    assert llm(PROMPT, **GREEDY)["choices"][0]["text"] == plain


def test_completion_streamed_is_the_same_text(llm):
    chunks = list(llm.create_completion("One, two,", stream=True, echo=True, suffix="!", **GREEDY))
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    whole = llm.create_completion("One, two,", echo=True, suffix="!", **GREEDY)
    assert "".join(texts) == whole["choices"][0]["text"]
    assert texts[0] == "One, two,"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * 7
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len({(c["id"], c["object"], c["created"], c["model"]) for c in chunks}) == 1


def test_completion_stream_closed_early_cancels_the_answer(llm):
    stream = llm.create_completion("Once upon a time", stream=True, max_tokens=None)
    next(stream)
    stream.close()
    assert llm.create_completion("One", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_completion_logprobs_are_those_of_the_tokens(llm):
    (choice,) = llm.create_completion(PROMPT, echo=True, logprobs=2, **GREEDY)["choices"]
    noted = choice["logprobs"]
    assert "".join(noted["tokens"]) == choice["text"]
    assert noted["token_logprobs"][0] is noted["top_logprobs"][0] is None
    scored = [entry.logprob for entry in llm.token_logprobs(choice["text"])]
    np.testing.assert_allclose(noted["token_logprobs"][1:], scored, rtol=1e-9)
    offsets = np.cumsum([0, *map(len, noted["tokens"])])[:-1]
    assert noted["text_offset"] == offsets.tolist()
    for token, logprob, top in list(zip(*list(noted.values())[:3], strict=True))[1:]:
        assert 2 <= len(top) <= 3
        assert top[token] == logprob
    (later,) = llm.create_completion(PROMPT, logprobs=2, **GREEDY)["choices"]
    assert later["logprobs"]["text_offset"][0] == len(PROMPT)
    chunks = llm.create_completion(PROMPT, logprobs=2, stream=True, **GREEDY)
    pieces = [c["choices"][0]["logprobs"] for c in chunks]
    assert [t for piece in pieces if piece for t in piece["tokens"]] == later["logprobs"]["tokens"]


def test_chat_completion_has_the_shape_of_the_openai_api(llm):
    found = llm.create_chat_completion(QUESTION, logprobs=True, top_logprobs=2, **GREEDY)
    plain = llm.chat(QUESTION, **GREEDY)
    assert json.loads(json.dumps(found)) == found
    assert found["object"] == "chat.completion"
    assert found["id"].startswith("chatcmpl-")
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": plain}
    assert choice["finish_reason"] == plain.finish_reason
    assert choice["logprobs"]["refusal"] is None
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == plain
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == plain
    for entry in content:
        assert len(entry["top_logprobs"]) == 2
        best = entry["top_logprobs"][0]
        assert {key: entry[key] for key in best} == best  # greedy


def test_chat_completion_streamed_has_role_text_and_reason(llm):
    chunks = list(llm.create_chat_completion(QUESTION, stream=True, **GREEDY))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant"}
    assert deltas[-1] == {}
    assert "".join(d["content"] for d in deltas[1:-1]) == llm.chat(QUESTION, **GREEDY)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_end_token_counts_as_no_part_of_the_answer(llm):
    end = llm.tokenize("<|im_end|>", add_bos=False, special=True)
    found = llm.create_chat_completion(QUESTION, logit_bias={str(end[0]): 99.0}, logprobs=True)
    (choice,) = found["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
    assert choice["logprobs"]["content"] == []
    assert found["usage"]["completion_tokens"] == 0


def test_embedding_has_the_shape_of_the_openai_api(llm):
    found = llm.create_embedding(["One.", "Two and three."])
    assert json.loads(json.dumps(found)) == found
    vectors = [entry["embedding"] for entry in found["data"]]
    np.testing.assert_array_equal(np.float32(vectors), llm.embed(["One.", "Two and three."]))
    assert [entry["index"] for entry in found["data"]] == [0, 1]
    n = sum(len(llm.tokenize(text)) for text in ("One.", "Two and three."))
    assert found["usage"] == {"prompt_tokens": n, "total_tokens": n}
    assert len(llm.create_embedding("One.")["data"]) == 1


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("create_completion", {"tfs_z": 0.5}),
        ("create_completion", {"stopping_criteria": [len]}),
        ("create_chat_completion", {"functions": [{}]}),
    ],
)
def test_argument_that_is_not_offered_is_refused_by_name(llm, method, argument):
    first = "a" if method == "create_completion" else QUESTION
    with pytest.raises(ValueError, match=f"{next(iter(argument))}: qllama does not offer it"):
        getattr(llm, method)(first, **argument)


def test_processors_of_either_form_are_heeded(llm):
    token = llm.tokenize(" Berlin", add_bos=False)[0]

    def only(tokens, logits):
        return np.where(np.arange(logits.size) == token, logits, -np.inf).astype(np.float32)

    for given in (only, [only], (only, only)):
        found = llm.create_completion("It is", max_tokens=1, logits_processor=given)
        assert found["choices"][0]["text"] == " Berlin"
