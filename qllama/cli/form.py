"""Options of answers of a given form, spelled as llama.cpp spells them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from qllama.cli.text_input import read_file

if TYPE_CHECKING:
    from qllama.generation.generator import GenerationOptions

__all__ = ["form_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_file = click.Path(path_type=Path)


def form_options(command: _Command) -> _Command:
    """Give `command` -j and its like; its `options` say so. Stands below `generation_options`."""

    @click.option(
        "-j",
        "--json-schema",
        metavar="SCHEMA",
        help="Answer with JSON of this schema; {} is any JSON.  [default: any text]",
    )
    @click.option(
        "-jf",
        "--json-schema-file",
        type=_file,
        metavar="FILE",
        help="Read the schema from FILE.  [default: none]",
    )
    @click.option(
        "--grammar",
        metavar="GRAMMAR",
        help="Answer in this grammar, GBNF or Lark.  [default: any text]",
    )
    @click.option(
        "--grammar-file",
        type=_file,
        metavar="FILE",
        help="Read the grammar from FILE.  [default: none]",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any,
        json_schema: str | None,
        json_schema_file: Path | None,
        grammar: str | None,
        grammar_file: Path | None,
        options: GenerationOptions,
        **kwargs: Any,
    ) -> Any:
        given: list[tuple[Literal["json_schema", "grammar"], str | Path]] = []
        for value in (json_schema, json_schema_file):
            if value is not None:
                given.append(("json_schema", value))
        for value in (grammar, grammar_file):
            if value is not None:
                given.append(("grammar", value))
        if len(given) > 1:
            raise click.UsageError(
                "Give one of --json-schema, --json-schema-file, --grammar and --grammar-file."
            )
        for name, value in given:
            options[name] = read_file(value) if isinstance(value, Path) else value
        return command(*args, options=options, **kwargs)

    return wrapper  # type: ignore[return-value]
