"""Chat templates: messages to one prompt, in the model's own Jinja.

Owns the sandbox that a template runs in and what it finds there, which is what
Hugging Face `transformers` offers. Knows nothing of tokens but the text of BOS
and EOS. Jinja is imported when a template is made.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qllama.errors import TokenizerError
from qllama.tokenizer.base import one_line

if TYPE_CHECKING:
    import jinja2.sandbox

    from qllama.tokenizer.base import Tokenizer

__all__ = ["PLAIN", "ChatTemplate", "check_messages"]

PLAIN = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.content and message.role != 'user' and not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
)
"""For a model that was never tuned for chat: it continues the text of what was said."""


class ChatTemplate:
    """A compiled chat template.

    It runs in Jinja's `ImmutableSandboxedEnvironment`: no attribute access to
    Python's internals, no changes to the messages, ranges of at most 100 000.
    `trim_blocks`, `lstrip_blocks`, loop controls, `{% generation %}`,
    `raise_exception`, `strftime_now` and `tojson` are as in `transformers`
    (`chat_template_utils.py`), so templates of the hub render alike.

    Parameters
    ----------
    source : str
        The Jinja template.
    bos_token, eos_token : str
        How the tokens are spelled, for the template to write; "" without one.
    name : str
        What errors call it.

    Attributes
    ----------
    source : str

    Raises
    ------
    TokenizerError
        When the template is not valid Jinja; names the line.
    """

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        name: str = "chat template",
    ) -> None:
        import jinja2

        self.source = source
        self._name = name
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(f"{name}, line {error.lineno}: {error.message}") from None
        except Exception as error:  # of Python's compiler: nested too deeply
            raise TokenizerError(f"{name}: {one_line(error)}") from None

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, template: str | os.PathLike[str] | None = None
    ) -> ChatTemplate:
        """Return the template of the tokenizer's model, or another for it.

        Parameters
        ----------
        tokenizer : Tokenizer
        template : str, path or None
            Jinja, or the path of a file of it; None is the model's own.

        Raises
        ------
        TokenizerError
            When the file cannot be read or is no template; or the model has none, and
            another model's is never used instead.
        """
        config, name = tokenizer.config, "chat template"
        if template is None:
            source = config.chat_template
        elif isinstance(template, str):
            source = template
        else:
            name = os.fspath(template)
            source = _read(Path(template))
        if source is None:
            raise TokenizerError(
                "the model has no chat template: give one (`--chat-template FILE`), use plain "
                "completion (`qllama generate`), or a model that was tuned for chat"
            )
        bos, eos = config.bos_token_id, next(iter(config.eos_token_ids), None)
        return cls(
            source,
            bos_token="" if bos is None else tokenizer.token_text(bos),
            eos_token="" if eos is None else tokenizer.token_text(eos),
            name=name,
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """Return the prompt for `messages`.

        Encode it with ``add_special=True, parse_special=True``: BOS is never
        doubled.

        Parameters
        ----------
        messages : sequence of mapping
            Each with `role` and `content`, and whatever else the template reads.
        add_generation_prompt : bool
            End with the opening of the assistant's turn.
        **extra
            More names for the template: `tools`, `documents`, `enable_thinking`.

        Raises
        ------
        TokenizerError
            When the template fails or refuses the messages; names its line. When
            a value is nothing that JSON has.
        """
        context = {
            "tools": None,
            "documents": None,
            **self._tokens,
            **extra,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        plain = {name: _plain(value, name) for name, value in context.items()}
        try:
            return self._template.render(plain)
        except Exception as error:  # whatever foreign code may raise
            lines = [
                frame.lineno
                for frame in traceback.extract_tb(error.__traceback__)
                if frame.filename == "<template>"
            ]
            where = f", line {lines[-1]}" if lines else ""
            raise TokenizerError(f"{self._name}{where}: {one_line(error)}") from None


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse `messages` that are no conversation: none, or one that lacks `role` or `content`.

    A message that calls tools needs no content.

    Raises
    ------
    ValueError
        Names the message.
    """
    if not messages:
        raise ValueError("messages: expected at least one, found none")
    for i, message in enumerate(messages):
        needed = {"role"} if message.get("tool_calls") else {"role", "content"}
        if not needed <= message.keys():
            found = ", ".join(map(repr, message)) or "none"
            raise ValueError(f"messages[{i}]: expected keys 'role' and 'content', found {found}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise TokenizerError(
            f"{path}: expected a chat template, but it cannot be read: {reason}"
        ) from None


def _plain(value: Any, where: str) -> Any:
    """Copy `value` in JSON's own types, so that no method of a richer one is in reach."""
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TokenizerError(
        f"chat template: {where}: expected text, a number, a list or a mapping, "
        f"found {type(value).__name__}"
    )


@functools.cache
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks the assistant's text for training; here it only shows it."""

        tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes HTML's characters."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
