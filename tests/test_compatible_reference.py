"""One script, run by llama-cpp-python and by qllama on the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qllama import Llama

llama_cpp = pytest.importorskip("llama_cpp")

pytestmark = pytest.mark.reference

PROMPT = "One, two, three, four,"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
HOW: dict[str, Any] = {"n_ctx": 256, "n_gpu_layers": 0, "logits_all": True, "verbose": False}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 6}


def script(llm: Any) -> dict[str, Any]:
    """Call what programs call, every response kept."""
    return {
        "completion": llm.create_completion(PROMPT, **GREEDY),
        "call": llm(PROMPT, echo=True, stop=[","], **GREEDY),
        "logprobs": llm.create_completion(PROMPT, logprobs=1, **GREEDY),
        "stream": list(llm.create_completion(PROMPT, stream=True, **GREEDY)),
        "chat": llm.create_chat_completion(QUESTION, **GREEDY),
        "chat logprobs": llm.create_chat_completion(
            QUESTION, logprobs=True, top_logprobs=1, **GREEDY
        ),
        "chat stream": list(llm.create_chat_completion(QUESTION, stream=True, **GREEDY)),
        "biased": llm.create_completion(
            PROMPT, logit_bias={llm.tokenize(b" dog", add_bos=False)[0]: 100.0}, **GREEDY
        ),
    }


@pytest.fixture(scope="module")
def theirs(smollm2_gguf: Path) -> dict[str, Any]:
    return script(llama_cpp.Llama(model_path=str(smollm2_gguf), **HOW))


@pytest.fixture(scope="module")
def ours(smollm2_q8: Path) -> dict[str, Any]:
    with Llama(model_path=str(smollm2_q8), **HOW) as llm:
        return script(llm)


def shape(value: Any) -> Any:
    """Reduce a response to its keys and the types behind them."""
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    if isinstance(value, dict):
        return {
            # Tokens, of which either library has its own; and a field that theirs leaves empty.
            key: "by token" if key == "top_logprobs" and isinstance(item, dict) else shape(item)
            for key, item in value.items()
            if key != "bytes"
        }
    if value is None or isinstance(value, str):
        return type(value).__name__
    return "number"


def text(response: Any) -> str:
    """Return what a response, or the pieces of one, say."""
    if isinstance(response, list):
        return "".join(map(text, response))
    (choice,) = response["choices"]
    if "text" in choice:
        return choice["text"]
    return choice.get("message", choice.get("delta")).get("content", "")


@pytest.mark.parametrize(
    "call",
    ["completion", "call", "logprobs", "stream", "chat", "chat logprobs", "chat stream", "biased"],
)
def test_one_script_has_the_same_answers_from_both(ours, theirs, call):
    assert text(ours[call]) == text(theirs[call])
    assert shape(ours[call]) == shape(theirs[call])
