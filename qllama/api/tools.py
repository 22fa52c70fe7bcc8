"""Tools in chats: what the OpenAI API's arguments and messages mean for a model.

Owns what the model is told of tools when its template has no words for them. How calls are
written and read is `generation.tool_calls`' business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qllama.generation.constraint import ConstraintOptions
from qllama.generation.generator import GenerationOptions
from qllama.generation.results import Completion, FinishReason
from qllama.generation.tool_calls import HERMES, CallDelta, CallReader, call_form
from qllama.tokenizer.base import Tokenizer

__all__ = ["Message", "Tools", "finish_reason", "message", "plain_messages", "streamed"]

Message = Mapping[str, Any]

_INSTRUCTIONS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


class Tools:
    """The tools that an answer may call.

    Parameters
    ----------
    tools : sequence of mapping
        `{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}`,
        at least one; parameters are a JSON Schema, left out where there are none.
    tool_choice : str or mapping or None
        `auto` (or None) leaves it to the model, `required` has it call at least one,
        `{"type": "function", "function": {"name": ...}}` that one.
    template : str
        The source of the model's chat template.

    Attributes
    ----------
    tools : sequence of mapping
    form_is_own : bool
        Whether the template itself tells the model how to call them.

    Raises
    ------
    ValueError
        When a tool or the choice is malformed; names it.
    """

    def __init__(
        self, tools: Sequence[Mapping[str, Any]], tool_choice: object, template: str
    ) -> None:
        if isinstance(tools, Mapping | str) or not tools:
            raise ValueError(f"tools: expected a sequence of at least one tool, found {tools!r}")
        self.tools = tools
        self._schemas = {}
        for i, tool in enumerate(tools):
            name, schema = _signature(tool, f"tools[{i}]")
            self._schemas[name] = schema
        self._only = self._chosen(tool_choice)
        self._is_forced = self._only is not None or tool_choice == "required"
        form = call_form(template)
        self.form_is_own = form is not None
        self._form = HERMES if form is None else form

    def constrained(self, options: GenerationOptions, tokenizer: Tokenizer) -> GenerationOptions:
        """Return `options` by which every call in the answer is valid.

        Parameters
        ----------
        options : GenerationOptions
        tokenizer : Tokenizer
            The model's.

        Raises
        ------
        ValueError
            When they constrain it already, or a schema is malformed.
        """
        for name in ConstraintOptions.__annotations__:
            given: Any = options.get(name)
            if given is not None and given != {"type": "text"}:
                raise ValueError(
                    f"tools and {name}: expected one of them, found both; leave one out, or "
                    'choose tool_choice="none"'
                )
        constraint = self._form.constraint(
            self._schemas, tokenizer, forced=self._is_forced, only=self._only
        )
        return {**options, "grammar": constraint}

    def reader(self) -> CallReader:
        """Return what takes an answer apart."""
        return CallReader(self._form)

    def read(self, answer: Completion) -> Completion:
        """Return `answer` with the calls that are in it, its text as the model wrote it."""
        reader = self.reader()
        calls = message(reader.push(answer)).get("tool_calls", ())
        return Completion(
            answer,
            answer.token_ids,
            finish_reason(answer.finish_reason, reader) or answer.finish_reason,
            answer.seed,
            answer.timings,
            answer.logprobs,
            tuple(calls),
        )

    def told(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return `messages` with the tools in the system message."""
        signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in self.tools)
        text = _INSTRUCTIONS.format(signatures=signatures)
        first = messages[0]
        if first["role"] != "system":
            return [{"role": "system", "content": text}, *messages]
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]

    def _chosen(self, choice: object) -> str | None:
        if choice in (None, "auto", "required"):
            return None
        function = choice.get("function") if isinstance(choice, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or name not in self._schemas:
            known = ", ".join(self._schemas)
            raise ValueError(
                "tool_choice: expected 'none', 'auto', 'required' or "
                f'{{"type": "function", "function": {{"name": ...}}}} with one of {known}, '
                f"found {choice!r}"
            )
        return name


def _signature(tool: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, Any]]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise ValueError(
            f'{where}: expected {{"type": "function", "function": {{"name": ...}}}}, found {tool!r}'
        )
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise ValueError(
            f"{where}.function.parameters: expected a JSON Schema of an object, found {schema!r}"
        )
    return name, {"type": "object", **schema}


def plain_messages(messages: Sequence[Message], template: str) -> Sequence[Message]:
    """Return `messages` as templates want them, or in plain text if it has no words for tools.

    Templates of the hub expect a call's arguments as a mapping, where the OpenAI API has JSON
    in a text.

    Parameters
    ----------
    messages : sequence of mapping
        Those without calls and results stay as they are.
    template : str
        The source of the model's chat template.

    Raises
    ------
    ValueError
        When a call is malformed; names it.
    """
    if not any(message.get("tool_calls") or message.get("role") == "tool" for message in messages):
        return messages
    parsed = [_parsed(message, f"messages[{i}]") for i, message in enumerate(messages)]
    return parsed if call_form(template) else _in_plain_text(parsed)


def _parsed(message: Message, where: str) -> Message:
    calls = message.get("tool_calls")
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    if not calls:
        return rest
    rest["content"] = rest.get("content") or ""
    return {
        **rest,
        "tool_calls": [_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(calls)],
    }


def _call(call: Any, where: str) -> dict[str, Any]:
    try:
        function = call["function"]
        arguments = function["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        return {**call, "function": {"name": function["name"], "arguments": arguments}}
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f'{where}: expected {{"function": {{"name": ..., "arguments": JSON}}}}, found {call!r}'
        ) from None


def _in_plain_text(messages: Iterable[Message]) -> list[Message]:
    """Write calls as `HERMES` has them, and results as messages of the user."""
    written: list[Message] = []
    was_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result:
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if was_result:  # many templates want turns to alternate
                text = f"{written.pop()['content']}\n{text}"
            message = {"role": "user", "content": text}
        elif "tool_calls" in message:
            calls = [
                f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
                for call in message["tool_calls"]
            ]
            text = "\n".join([*filter(None, [message["content"]]), *calls])
            message = {"role": message["role"], "content": text}
        was_result = is_result
        written.append(message)
    return written


def finish_reason(reason: FinishReason | None, reader: CallReader | None) -> FinishReason | None:
    """Return the `reason` why an answer ended, or that it calls tools.

    Parameters
    ----------
    reason : str or None
    reader : CallReader or None
        Which has read the answer.
    """
    return "tool_calls" if reason == "stop" and reader and reader.n_calls else reason


def streamed(part: str | CallDelta) -> dict[str, Any]:
    """Return `part` of an answer as the `delta` of a chunk."""
    if isinstance(part, str):
        return {"content": part}
    call: dict[str, Any] = {"index": part.index, "function": {"arguments": part.arguments}}
    if part.name is not None:
        call |= {"id": part.id, "type": "function"}
        call["function"] = {"name": part.name, **call["function"]}
    return {"tool_calls": [call]}


def message(parts: Iterable[str | CallDelta]) -> dict[str, Any]:
    """Return the message that `parts` make: without content where there are calls alone."""
    text = ""
    calls: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if part.name is not None:
            function = {"name": part.name, "arguments": ""}
            calls.append({"id": part.id, "type": "function", "function": function})
        calls[part.index]["function"]["arguments"] += part.arguments
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": text or None, "tool_calls": calls}
