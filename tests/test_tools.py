"""Tools in chats of the real small model: called, streamed, answered."""

from __future__ import annotations

import json

import jsonschema
import pytest

from qllama import Llama

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "get_time", "description": "Tells the time"}},
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
HOW = {"tools": TOOLS, "temperature": 0, "max_tokens": 100}

# In the manner of models that know tools, with SmolLM2's control tokens.
QWEN = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Call them as <tool_call><|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}"
    "\n{{ m.content }}{% for call in m.tool_calls %}{{ '\n' if not loop.first }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
LLAMA_3 = (
    "{% if tools %}Environment: ipython\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    '{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if "tool_calls" in m %}'
    '{"name": "{{ m.tool_calls[0].function.name }}", {{- \'"parameters": \' }}'
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def llm(smollm2_q8):
    with Llama(smollm2_q8, n_ctx=1024) as llm:
        yield llm


@pytest.fixture(scope="module", params=["own", QWEN, LLAMA_3], ids=["none", "qwen", "llama 3"])
def taught(request, smollm2_q8):
    template = None if request.param == "own" else request.param
    with Llama(smollm2_q8, n_ctx=1024, chat_template=template) as llm:
        yield llm


def only_choice(response):
    (choice,) = response["choices"]
    return choice


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_forced_call_has_valid_arguments_whatever_the_sampling(taught, choice):
    how = {
        **HOW,
        "tool_choice": choice,
        "temperature": 2.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_tokens": 60,
    }
    for seed in range(3):
        found = only_choice(taught.create_chat_completion(QUESTION, seed=seed, **how))
        assert found["finish_reason"] in ("tool_calls", "length")
        calls = found["message"]["tool_calls"]
        whole = calls if found["finish_reason"] == "tool_calls" else calls[:-1]
        for call in whole:
            assert call["type"] == "function"
            arguments = json.loads(call["function"]["arguments"])
            schemas = {"get_weather": WEATHER, "get_time": {"maxProperties": 0}}
            jsonschema.validate(arguments, schemas[call["function"]["name"]])
        if choice is NAMED:
            assert [call["function"]["name"] for call in calls] == ["get_weather"]
            assert found["finish_reason"] == "tool_calls"


def test_named_tool_is_called_with_what_the_question_says(llm):
    found = only_choice(llm.create_chat_completion(QUESTION, tool_choice=NAMED, **HOW))
    assert found["message"]["content"] is None
    (call,) = found["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] == "Paris"
    answer = llm.chat(QUESTION, tool_choice=NAMED, **HOW)
    assert answer.tool_calls[0]["function"] == call["function"]
    assert answer.finish_reason == "tool_calls"
    assert answer.startswith('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"')


def test_streamed_calls_put_together_are_the_same(taught):
    how = {**HOW, "tool_choice": "required", "logprobs": True}
    whole = only_choice(taught.create_chat_completion(QUESTION, **how))
    chunks = list(taught.create_chat_completion(QUESTION, stream=True, **how))
    calls = []
    tokens = []
    for chunk in chunks[1:-1]:
        choice = only_choice(chunk)
        tokens += (choice["logprobs"] or {"content": []})["content"]
        for part in choice["delta"].get("tool_calls", ()):
            if "id" in part:
                calls.append(part)
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    expected = whole["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [call["function"] for call in expected]
    assert [call["index"] for call in calls] == [*range(len(calls))]
    assert tokens == whole["logprobs"]["content"]
    assert only_choice(chunks[-1]) == {
        **{"index": 0, "delta": {}, "logprobs": None, "finish_reason": whole["finish_reason"]}
    }


def test_model_may_answer_in_text_where_it_is_free_to(llm):
    found = only_choice(llm.create_chat_completion(QUESTION, **HOW))
    assert "tool_calls" not in found["message"]
    assert "Paris" in found["message"]["content"]
    chunks = [only_choice(c) for c in llm.create_chat_completion(QUESTION, stream=True, **HOW)]
    text = "".join(choice["delta"].get("content", "") for choice in chunks)
    assert text == found["message"]["content"]
    assert chunks[-1]["finish_reason"] == found["finish_reason"]


def test_choice_of_none_leaves_the_tools_out(llm):
    found = llm.create_chat_completion(QUESTION, tool_choice="none", **HOW)
    assert found["usage"]["prompt_tokens"] == len(llm.tokenize_chat(QUESTION))
    assert only_choice(found)["message"]["content"] == llm.chat(
        QUESTION, temperature=0, max_tokens=100
    )


def test_conversation_with_results_goes_on_from_the_tokens_of_the_call(taught):
    reply = only_choice(taught.create_chat_completion(QUESTION, tool_choice=NAMED, **HOW))
    call = reply["message"]["tool_calls"][0]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "21 degrees, sunny"}
    conversation = [*QUESTION, reply["message"], result]
    after = taught.chat(conversation, **{**HOW, "max_tokens": 5})
    n_asked = len(taught.tokenize_chat(QUESTION))
    assert after.timings.reused_tokens > n_asked
    last = taught.detokenize(taught.tokenize_chat(conversation), special=True)
    assert "21 degrees, sunny" in last


def test_results_in_a_row_are_one_message_of_a_template_without_tools(llm):
    calls = [{"id": "a", "function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}] * 2
    results = [{"role": "tool", "content": text} for text in ("one", "two")]
    messages = [*QUESTION, {"role": "assistant", "tool_calls": calls}, *results]
    written = llm.detokenize(llm.tokenize_chat(messages), special=True)
    call = '<tool_call>\n{"name": "f", "arguments": {"x": [1, "é"]}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{call}\n{call}<|im_end|>" in written
    one, two = (f"<tool_response>\n{text}\n</tool_response>" for text in ("one", "two"))
    assert f"<|im_start|>user\n{one}\n{two}<|im_end|>" in written


def test_system_message_is_kept_before_the_tools(llm):
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    n_plain = len(llm.tokenize_chat(messages))
    found = llm.create_chat_completion(messages, **{**HOW, "max_tokens": 1})
    assert found["usage"]["prompt_tokens"] > n_plain + 50
    assert found["usage"]["prompt_tokens"] - n_plain < 250


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": []}, "^tools: expected a sequence of at least one tool"),
        ({"tools": TOOLS[0]}, "^tools: expected a sequence"),
        ({"tools": [{"type": "function"}]}, r"^tools\[0\]: expected"),
        ({"tools": [TOOLS[0], {"function": {}}]}, r"^tools\[1\]: expected"),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"type": "string"}}}]},
            r"^tools\[0\].function.parameters: expected a JSON Schema of an object",
        ),
        ({"tools": [{"function": {"name": "f", "parameters": {"not": 1}}}]}, '^tools: .*"not"'),
        ({"tools": TOOLS, "tool_choice": "some"}, "^tool_choice: .*get_weather, get_time, found"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "x"}}}, "^tool_choice: expected"),
        ({"tool_choice": "required"}, "^tool_choice: expected tools to choose from"),
        ({"tools": TOOLS, "grammar": "start: x"}, "^tools and grammar: expected one of them"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
            r"^messages\[0\].tool_calls\[0",
        ),
    ],
)
def test_malformed_tools_are_refused_on_one_line(llm, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        llm.create_chat_completion(**{"messages": QUESTION, **options})
    assert "\n" not in str(refusal.value)
