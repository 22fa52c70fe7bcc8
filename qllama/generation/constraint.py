"""What an answer must look like, as the caller says it.

Owns the options that say so and which of them go together. Masks are made of it by
`guide`; this module needs no library and knows no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from qllama.generation.json_schema import closed

__all__ = ["Constraint", "ConstraintOptions"]

Schema = Mapping[str, Any] | bool | str


class ConstraintOptions(TypedDict, total=False):
    """The options that constrain an answer, as keyword arguments; at most one of them.

    See `Constraint.of`.
    """

    response_format: Mapping[str, Any] | None
    json_schema: Schema | None
    regex: str | None
    choice: Sequence[str] | None
    grammar: str | Constraint | None


@dataclass(frozen=True, slots=True)
class Constraint:
    """A language that an answer belongs to.

    Parameters
    ----------
    kind : str
        What `text` is: a JSON `schema`, a `regex`, `lark`, or a `grammar` in GBNF or Lark.
    text : str
    option : str
        What errors call it.
    spelled : tuple of int
        Control tokens that belong to the text, as they are spelled.
    """

    kind: Literal["schema", "regex", "grammar", "lark"]
    text: str
    option: str = "grammar"
    spelled: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        response_format: Mapping[str, Any] | None = None,
        json_schema: Schema | None = None,
        regex: str | None = None,
        choice: Sequence[str] | None = None,
        grammar: str | Constraint | None = None,
    ) -> Constraint | None:
        """Return what the options ask for; None where they ask for nothing.

        Parameters
        ----------
        response_format : mapping, optional
            The OpenAI API's `{"type": "text"}`, `{"type": "json_object"}` or
            `{"type": "json_schema", "json_schema": {"schema": ...}}`; llama-cpp-python's
            `{"type": "json_object", "schema": ...}` too.
        json_schema : mapping, bool or str, optional
            A JSON Schema, or its text.
        regex : str, optional
            What the whole answer must match; Rust's syntax, which has no look-around.
        choice : sequence of str, optional
            The answer is one of these.
        grammar : str or Constraint, optional
            GBNF, as llama.cpp has it, or Lark.

        Raises
        ------
        ValueError
            When several are given, or one is malformed.
        """
        made = {
            "response_format": _of_format(response_format),
            "json_schema": None if json_schema is None else _of_schema(json_schema, "json_schema"),
            "regex": None if regex is None else cls("regex", _text(regex, "regex"), "regex"),
            "choice": None if choice is None else _of_choice(choice),
            "grammar": _of_grammar(grammar),
        }
        given = [name for name, constraint in made.items() if constraint is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)}: expected one constraint, found {len(given)}; give one"
            )
        return made[given[0]] if given else None


def _of_format(given: Mapping[str, Any] | None) -> Constraint | None:
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return _of_schema(given.get("schema", {"type": "object"}), "response_format.schema")
    if kind == "json_schema":
        inner = given.get("json_schema")
        if isinstance(inner, Mapping) and "schema" in inner:
            return _of_schema(inner["schema"], "response_format.json_schema.schema")
        raise ValueError(
            "response_format.json_schema: expected a mapping with the key 'schema', "
            f"found {inner!r}"
        )
    raise ValueError(
        'response_format: expected {"type": "text"}, "json_object" or "json_schema", '
        f"found {given!r}"
    )


def _of_schema(schema: Schema, option: str) -> Constraint:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ValueError(f"{option}: expected JSON, but {error}") from None
    if not isinstance(schema, Mapping | bool):
        raise ValueError(f"{option}: expected a JSON Schema, found {schema!r}")
    try:
        text = json.dumps(closed(schema), ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"{option}: expected what JSON has, but {error}") from None
    return Constraint("schema", text, option)


def _of_choice(choices: Sequence[str]) -> Constraint:
    if isinstance(choices, str) or not choices or not all(isinstance(c, str) for c in choices):
        raise ValueError(f"choice: expected a sequence of strings, found {choices!r}")
    return Constraint("lark", f"start: {' | '.join(map(json.dumps, choices))}", "choice")


def _of_grammar(grammar: str | Constraint | None) -> Constraint | None:
    if grammar is None or isinstance(grammar, Constraint):
        return grammar
    return Constraint("grammar", _text(grammar, "grammar"))


def _text(given: object, option: str) -> str:
    if not isinstance(given, str) or not given:
        raise ValueError(f"{option}: expected a text, found {given!r}")
    return given
