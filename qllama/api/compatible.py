"""llama-cpp-python's methods: its arguments, its defaults, the OpenAI API's dicts.

Owns what its arguments mean here. An argument that qllama has nothing for is refused by
name where it is given, and never ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qllama.api.inspection import InspectableModel
from qllama.api.shapes import Response, chat_logprobs, completion_logprobs, usage
from qllama.api.tools import finish_reason, message, streamed
from qllama.generation.constraint import Constraint
from qllama.generation.generator import GenerationOptions
from qllama.generation.logprobs import TokenLogprob
from qllama.generation.loop import Stream
from qllama.generation.options import LogitsProcessor
from qllama.generation.tool_calls import CallReader

__all__ = ["CompatibleModel"]

Dict = dict[str, Any]


class CompatibleModel(InspectableModel):
    """What programs written for llama-cpp-python call.

    Each returns a dict, or with `stream=True` an iterator of dicts.
    """

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = (),
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: object = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: str | Constraint | None = None,
        logit_bias: Mapping[int, float] | None = None,
    ) -> Dict | Iterator[Dict]:
        """Continue a text, as `llama_cpp.Llama.create_completion` does.

        Parameters
        ----------
        prompt : str or sequence of int
            As `generate` takes it.
        suffix : str, optional
            Appended to the text.
        max_tokens : int, optional
            None, 0 and below go on until the context is full.
        echo : bool
            Return the prompt before the answer; with `logprobs` those of its tokens too.
        model : str, optional
            What the response is to call the model; by default the file's path.
        mirostat_mode : int
            `mirostat` of `generate`.
        logits_processor : callable or sequence of callable, optional
            `logits_processors` of `generate`.
        tfs_z, stopping_criteria
            Not offered; refused where they are not as they are by default.
        temperature, top_p, min_p, typical_p, logprobs, stop, stream, seed, logit_bias, top_k
            As in `generate`, as is `grammar`.
        frequency_penalty, presence_penalty, repeat_penalty, mirostat_tau, mirostat_eta
            As in `generate`.

        Raises
        ------
        ContextLengthError, TypeError, ValueError
            As `generate`; and when an argument is not offered.
        """
        _refuse(tfs_z=tfs_z != 1.0, stopping_criteria=stopping_criteria)
        ids = self._prompt_ids(prompt)
        answer = self._generator.start(
            ids,
            max_tokens=max_tokens if max_tokens is not None and max_tokens > 0 else None,
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            logprobs=logprobs,
            stop=stop,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            top_k=top_k,
            seed=seed,
            mirostat=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            logits_processors=_processors(logits_processor),
            logit_bias=_biases(logit_bias),
            grammar=grammar,
        )
        before = prompt if isinstance(prompt, str) else self.detokenize(ids)
        response = Response("text_completion", model or self._path)
        if stream:
            return self._stream_text(response, answer, before, echo, suffix)
        text = answer.completion()
        noted = None
        if text.logprobs is not None:
            tokens: list[TokenLogprob | int] = list(self._shown(text.logprobs))
            if echo:
                scored = self.token_logprobs(ids, top=logprobs or 0) if len(ids) > 1 else []
                tokens = [ids[0], *scored, *tokens]
            noted = completion_logprobs(tokens, self._tokenizer, 0 if echo else len(before))
        choice = {
            "text": f"{before if echo else ''}{text}{suffix or ''}",
            "index": 0,
            "logprobs": noted,
            "finish_reason": text.finish_reason,
        }
        return response.whole([choice], usage(len(ids), len(self._shown(text.token_ids))))

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: object = None,
        function_call: object = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = (),
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: str | Constraint | None = None,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> Dict | Iterator[Dict]:
        """Answer a conversation, as `llama_cpp.Llama.create_chat_completion` does.

        Parameters
        ----------
        messages : sequence of mapping
            As `chat` takes them.
        response_format : mapping, optional
            `{"type": "json_object"}` and its like, as in `generate`.
        tools, tool_choice
            As in `chat`.
        functions, function_call, tfs_z
            Not offered; refused where they are not as they are by default.
        logprobs, top_logprobs : bool, int
            Have the response tell how likely its tokens were, and which others.
        max_tokens, model, mirostat_mode, logits_processor
            As in `create_completion`.
        temperature, top_p, top_k, min_p, typical_p, stream, stop, seed, logit_bias
            As in `generate`, as is `grammar`.
        presence_penalty, frequency_penalty, repeat_penalty, mirostat_tau, mirostat_eta
            As in `generate`.

        Raises
        ------
        ContextLengthError, TokenizerError, TypeError, ValueError
            As `chat`; and when an argument is not offered.
        """
        _refuse(
            functions=functions,
            function_call=function_call,
            tfs_z=tfs_z != 1.0,
        )
        options: GenerationOptions = {
            "max_tokens": max_tokens if max_tokens is not None and max_tokens > 0 else None,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "typical_p": typical_p,
            "stop": stop,
            "seed": seed,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "repeat_penalty": repeat_penalty,
            "mirostat": mirostat_mode,
            "mirostat_tau": mirostat_tau,
            "mirostat_eta": mirostat_eta,
            "logits_processors": _processors(logits_processor),
            "logit_bias": _biases(logit_bias),
            "logprobs": (top_logprobs or 0) if logprobs else None,
            "response_format": response_format,
            "grammar": grammar,
        }
        offered = self._offered(tools, tool_choice)
        answer = self._start_chat(messages, offered, options)
        response = Response("chat.completion", model or self._path)
        reader = None if offered is None else offered.reader()
        if stream:
            return self._stream_chat(response, answer, reader)
        text = answer.completion()
        parts = [str(text)] if reader is None else [*reader.push(text), reader.flush()]
        choice = {
            "index": 0,
            "message": message(parts),
            "logprobs": None
            if text.logprobs is None
            else chat_logprobs(self._shown(text.logprobs), self._tokenizer),
            "finish_reason": finish_reason(text.finish_reason, reader),
        }
        used = usage(text.prompt_tokens, len(self._shown(text.token_ids)))
        return response.whole([choice], used)

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> Dict:
        """Return vectors of texts, as `llama_cpp.Llama.create_embedding` does.

        They are the mean of the tokens' states, of length one as the OpenAI API's are.

        Parameters
        ----------
        input : str or sequence of str
        model : str, optional
            What the response is to call the model; by default the file's path.

        Raises
        ------
        ContextLengthError, ValueError
            As `embed`.
        """
        texts = [input] if isinstance(input, str) else list(input)
        n_tokens = sum(len(self._text_ids(text, add_eos=True)) for text in texts)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "embedding": vector, "index": i}
                for i, vector in enumerate(self.embed(texts).tolist())
            ],
            "model": model or self._path,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }

    def _shown(self, tokens: Sequence[Any]) -> Sequence[Any]:
        """Leave out the control token that ended an answer: it is no part of it."""
        last = tokens[-1] if tokens else None
        token = last.token_id if isinstance(last, TokenLogprob) else last
        ended = token is not None and self._tokenizer.is_special(token)
        return tokens[:-1] if ended else tokens

    def _stream_text(
        self, response: Response, answer: Stream, prompt: str, echo: bool, suffix: str | None
    ) -> Iterator[Dict]:
        offset = len(prompt)
        with answer:
            if echo:
                yield response.chunk({"text": prompt})
            for piece in answer:
                noted = None
                if piece.logprobs is not None:
                    shown = self._shown(piece.logprobs)
                    noted = completion_logprobs(shown, self._tokenizer, offset)
                offset += len(piece)
                if piece or noted:
                    yield response.chunk({"text": str(piece)}, noted)
            yield response.chunk({"text": suffix or ""}, None, answer.finish_reason)

    def _stream_chat(
        self, response: Response, answer: Stream, reader: CallReader | None
    ) -> Iterator[Dict]:
        with answer:
            yield response.chunk({"delta": {"role": "assistant"}})
            for piece in answer:
                noted = None
                if piece.logprobs is not None:
                    noted = chat_logprobs(self._shown(piece.logprobs), self._tokenizer)
                deltas = [{"content": str(piece)}] if piece else []
                if reader is not None:
                    deltas = [streamed(part) for part in reader.push(piece)]
                if not deltas and noted and noted["content"]:
                    deltas = [{"content": ""}]
                for delta in deltas:
                    yield response.chunk({"delta": delta}, noted)
                    noted = None
            withheld = "" if reader is None else reader.flush()
            if withheld:
                yield response.chunk({"delta": {"content": withheld}})
            reason = finish_reason(answer.finish_reason, reader)
            yield response.chunk({"delta": {}}, None, reason)


def _refuse(**given: object) -> None:
    """Refuse arguments that mean something which is not offered."""
    for name, value in given.items():
        if value:
            raise ValueError(f"{name}: qllama does not offer it; leave it out")


def _processors(
    given: LogitsProcessor | Sequence[LogitsProcessor] | None,
) -> Sequence[LogitsProcessor]:
    if given is None:
        return ()
    # llama-cpp-python's LogitsProcessorList is both: a list that is called as one.
    return tuple(given) if isinstance(given, Sequence) else (given,)


def _biases(given: Mapping[Any, float] | None) -> dict[int, float]:
    """Return biases by token id; JSON has its ids as text."""
    return {int(token): bias for token, bias in (given or {}).items()}
