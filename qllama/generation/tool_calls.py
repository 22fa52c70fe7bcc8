"""How models write calls of tools into their answers: by what grammar, and read back.

Owns the forms that families of models were trained on. Knows neither messages nor
templates: which form a model's template asks for shows in its text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qllama.generation.constraint import Constraint
from qllama.generation.json_schema import ONE_LINE, closed
from qllama.generation.stop import overlap
from qllama.tokenizer.base import Tokenizer

__all__ = ["HERMES", "CallDelta", "CallForm", "CallReader", "call_form"]


@dataclass(frozen=True, slots=True)
class CallForm:
    """How calls are written.

    Parameters
    ----------
    opening, closing : str
        What surrounds calls; where the vocabulary has a control token of that spelling,
        that token.
    one, several : str
        What follows the opening, in Lark, where `call` is the JSON of a call and `OPENING`
        and `CLOSING` are these.
    key : str
        What the arguments are called.
    """

    opening: str
    closing: str
    one: str
    several: str
    key: str = "arguments"

    def constraint(
        self, tools: Mapping[str, Any], tokenizer: Tokenizer, *, forced: bool, only: str | None
    ) -> Constraint:
        """Return what an answer that may call tools must look like.

        Parameters
        ----------
        tools : mapping of str to mapping
            JSON Schemas of their arguments by their names.
        tokenizer : Tokenizer
            The model's.
        forced : bool
            The answer must call; else it may be any text instead, or before the calls.
        only : str or None
            The tool that alone may be called, once.
        """
        opening, closing = _literal(self.opening, tokenizer), _literal(self.closing, tokenizer)
        is_text = opening.startswith('"')
        calls = self.one if only is not None else self.several
        calls = calls.replace("OPENING", opening).replace("CLOSING", closing)
        if forced:
            start = f"{opening} calls" if self.opening else "calls"
        elif not self.opening:
            start = "TEXT? | calls\nTEXT: /[^{](?s:.)*/"
        elif is_text:
            start = f"TEXT | head calls\nhead[lazy]: TEXT {opening}\nTEXT: /(?s:.)*/"
        else:
            start = f"TEXT ({opening} calls)?\nTEXT: /(?s:.)*/"
        called = [name for name in tools if only in (None, name)]
        rules = [f"start: {start}", f"calls: {calls}"]
        rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(called))))
        for i, name in enumerate(called):
            spelled_name = json.dumps(name, ensure_ascii=False)
            head = json.dumps(f'{{"name": {spelled_name}, "{self.key}": ')
            schema = {"x-guidance": ONE_LINE, **closed(tools[name])}
            rules.append(f'call_{i}: {head} %json {json.dumps(schema)} "}}"')
        spelled = tuple(int(text[2:-2]) for text in (opening, closing) if text.startswith("<"))
        return Constraint("lark", "\n".join(rules), "tools", spelled)


HERMES = CallForm(
    opening="<tool_call>",
    closing="</tool_call>",
    one=r'"\n" call "\n" CLOSING',
    several=r'"\n" call "\n" CLOSING ("\n" OPENING "\n" call "\n" CLOSING)*',
)
"""Of Hermes, Qwen 2.5 and Qwen 3, and of models that were taught none."""

_MISTRAL = CallForm(
    opening="[TOOL_CALLS]",
    closing="",
    one='" "? "[" call "]"',
    several='" "? "[" call (", " call)* "]"',
)
_LLAMA_3 = CallForm(opening="", closing="", one="call", several="call", key="parameters")


def call_form(template: str) -> CallForm | None:
    """Return the form that a chat template asks for, None where it asks for none known here.

    Parameters
    ----------
    template : str
        Its source.
    """
    if not re.search(r"\btools\b", template):
        return None
    if "<tool_call>" in template and "<function=" not in template:
        return HERMES
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return _MISTRAL
    if "ipython" in template and '"parameters": ' in template:
        return _LLAMA_3
    return None


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What became certain of a call.

    Parameters
    ----------
    index : int
        Of the call, from 0.
    id, name : str or None
        On the first delta of each call.
    arguments : str
        What is to be appended to the JSON of its arguments.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


class CallReader:
    """Takes an answer apart, as it comes, into its text and its calls.

    Parameters
    ----------
    form : CallForm
        How calls are written.

    Attributes
    ----------
    n_calls : int
        Calls whose name is known.
    """

    def __init__(self, form: CallForm) -> None:
        self._opening = form.opening
        self._head = re.compile(rf'\{{"name": ("(?:[^"\\]|\\.)*"), "{form.key}": ')
        self._rest = ""
        self._state: Literal["start", "text", "head", "arguments"] = "start"
        self._depth = 0
        self._in_string = self._is_escaped = False
        self.n_calls = 0

    def push(self, text: str) -> list[str | CallDelta]:
        """Take what follows; return what is certain with it: text, and parts of calls."""
        self._rest += text
        return list(self._parts())

    def flush(self) -> str:
        """Return the text that was withheld: the answer has ended."""
        rest, self._rest = self._rest, ""
        return rest if self._state == "text" else ""

    def _parts(self) -> Iterator[str | CallDelta]:
        if self._state == "start" and self._rest:
            is_call = not self._opening and self._rest.startswith("{")
            self._state = "head" if is_call else "text"
        if self._state == "text":
            before, opening, after = self._split()
            if before:
                yield before
            self._rest = after
            if opening:
                self._state = "head"
        while self._state in ("head", "arguments"):
            if self._state == "head":
                head = self._head.search(self._rest)
                if head is None:
                    return
                self._rest = self._rest[head.end() :]
                self._state = "arguments"
                self.n_calls += 1
                yield CallDelta(self.n_calls - 1, _new_id(), json.loads(head[1]), "")
            n = self._n_of_arguments()
            if n:
                yield CallDelta(self.n_calls - 1, None, None, self._rest[:n])
            self._rest = self._rest[n:]
            if self._state == "arguments":
                return

    def _split(self) -> tuple[str, bool, str]:
        """Return text, whether calls begin after it, and what is not certain yet."""
        rest, opening = self._rest, self._opening
        if not opening:
            return rest, False, ""
        if opening in rest:
            before, _, after = rest.partition(opening)
            return before, True, after
        n = len(rest) - overlap(rest, opening)
        return rest[:n], False, rest[n:]

    def _n_of_arguments(self) -> int:
        """Return how much of the rest belongs to the arguments; they are one JSON object."""
        for n, character in enumerate(self._rest, 1):
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._state = "head"
                    return n
        return len(self._rest)


def _new_id() -> str:
    """Return an id for a call: Mistral's templates want nine letters or digits."""
    return secrets.token_hex(5)[:9]


def _literal(text: str, tokenizer: Tokenizer) -> str:
    """Return `text` in Lark, as the control token that it spells if it spells one."""
    if not text:
        return ""
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    if len(ids) == 1 and tokenizer.is_special(ids[0]):
        return f"<[{ids[0]}]>"
    return json.dumps(text)
