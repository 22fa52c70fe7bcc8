"""Results in the shapes of the OpenAI API, as plain dicts.

Owns which key means what. https://platform.openai.com/docs/api-reference, where
llama-cpp-python follows it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from qllama.generation.logprobs import TokenLogprob
from qllama.tokenizer.base import Tokenizer

__all__ = ["Response", "chat_logprobs", "completion_logprobs", "usage"]


class Response:
    """What all dicts of one call have in common.

    Parameters
    ----------
    kind : str
        `text_completion` or `chat.completion`.
    model : str
        Its name, as the caller or the file says.
    """

    def __init__(self, kind: str, model: str) -> None:
        prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
        self._common = {
            "id": f"{prefix}-{secrets.token_hex(16)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: Sequence[dict[str, Any]], used: dict[str, int]) -> dict[str, Any]:
        """Return the response that has all `choices`, and what they `used`."""
        return {**self._common, "choices": list(choices), "usage": used}

    def chunk(
        self,
        content: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        """Return one piece of a streamed response.

        Parameters
        ----------
        content : dict
            `text`, or `delta` for a chat.
        logprobs : dict, optional
        finish_reason : str, optional
            On the last piece.
        """
        choice = {"index": 0, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        kind = self._common["object"]
        name = kind if kind == "text_completion" else f"{kind}.chunk"
        return {**self._common, "object": name, "choices": [choice]}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the `usage` of a response, `prompt_tokens` and `completion_tokens` added up."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def completion_logprobs(
    tokens: Iterable[TokenLogprob | int], tokenizer: Tokenizer, offset: int
) -> dict[str, Any]:
    """Return the `logprobs` of a completion.

    Parameters
    ----------
    tokens : iterable of TokenLogprob or int
        An int is a token that nothing came before: it has no probability.
    tokenizer : Tokenizer
        The model's.
    offset : int
        Characters before the first token.
    """
    result: dict[str, list[Any]] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for token in tokens:
        noted = None if isinstance(token, int) else token
        text = _spelled(token if isinstance(token, int) else token.token_id, tokenizer)
        top = None
        if noted is not None:
            top = {_spelled(other, tokenizer): logprob for other, logprob in noted.top}
            top[text] = noted.logprob
        result["tokens"].append(text)
        result["token_logprobs"].append(None if noted is None else noted.logprob)
        result["top_logprobs"].append(top)
        result["text_offset"].append(offset)
        offset += len(text)
    return result


def chat_logprobs(tokens: Iterable[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the `logprobs` of a chat's answer.

    Parameters
    ----------
    tokens : iterable of TokenLogprob
    tokenizer : Tokenizer
        The model's.
    """

    def entry(token: int, logprob: float) -> dict[str, Any]:
        spelled = _spelled(token, tokenizer)
        return {"token": spelled, "logprob": logprob, "bytes": list(tokenizer.token_bytes(token))}

    return {
        "content": [
            {
                **entry(token.token_id, token.logprob),
                "top_logprobs": [entry(*other) for other in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _spelled(token: int, tokenizer: Tokenizer) -> str:
    """Return a token's text; of a part of a character what stands for one that is missing."""
    if tokenizer.is_special(token):
        return tokenizer.token_text(token)
    return tokenizer.token_bytes(token).decode(errors="replace")
