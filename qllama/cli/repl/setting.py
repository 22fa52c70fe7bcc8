"""`/set`: the variables of a session.

Owns their names and what is said when they change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

from qllama.cli.repl.parameters import NUM_CTX, PARAMETERS, changed, find_parameter
from qllama.cli.repl.wording import table, unknown, unquoted

if TYPE_CHECKING:
    from qllama.cli.repl.chat import Chat
    from qllama.generation.generator import GenerationOptions

__all__ = ["VARIABLES", "set_variable", "usage"]


class Variable(NamedTuple):
    """What `/set` can set.

    Parameters
    ----------
    arguments : str
        As help shows them.
    help : str
    run : callable
        Given the chat and the text after the variable's name.
    """

    arguments: str
    help: str
    run: Callable[[Chat, str], None]


def set_variable(chat: Chat, argument: str) -> None:
    """Obey `/set`.

    Parameters
    ----------
    chat : Chat
        Whose variable it is.
    argument : str
        The variable and its value; without them, their help is shown.
    """
    name, _, value = argument.partition(" ")
    if not name:
        chat.screen.say(usage())
    elif name in VARIABLES:
        VARIABLES[name].run(chat, value.strip())
    else:
        chat.screen.say(unknown(name, VARIABLES, before="/set "))


def usage() -> str:
    """Return the help of `/set`."""
    rows = [(f"/set {name} {v.arguments}".rstrip(), v.help) for name, v in VARIABLES.items()]
    return f"Available Commands:\n{table(rows)}\n"


def _set_parameter(chat: Chat, argument: str) -> None:
    name, *words = argument.split() or [""]
    if not words:
        rows = [(f"/set parameter {p.usage}", p.help) for p in PARAMETERS]
        chat.screen.say(f"Available Parameters:\n{table(rows)}\n")
        return
    try:
        parameter = find_parameter(name)
        if name == NUM_CTX:
            chat.set_context(parameter.parse(words))
        else:
            chat.options = changed(chat.options, parameter, words)
    except ValueError as error:
        chat.screen.say(f"Couldn't set parameter: {error}")
    else:
        chat.screen.say(f"Set parameter '{name}' to '{', '.join(words)}'")


def _set_system(chat: Chat, text: str) -> None:
    if not text:
        chat.screen.say(usage())
        return
    chat.conversation.system = unquoted(text)
    chat.screen.say("Set system message.")


def _set_history(chat: Chat, _: str) -> None:
    chat.remembers = True


def _set_nohistory(chat: Chat, _: str) -> None:
    chat.remembers = False


def _set_wordwrap(chat: Chat, _: str) -> None:
    chat.screen.wordwrap = True
    chat.screen.say("Set 'wordwrap' mode.")


def _set_nowordwrap(chat: Chat, _: str) -> None:
    chat.screen.wordwrap = False
    chat.screen.say("Set 'nowordwrap' mode.")


def _set_format(chat: Chat, name: str) -> None:
    if name != "json":
        chat.screen.say("Invalid or missing format. For 'json' mode use '/set format json'")
        return
    chat.options = {**_of_any_form(chat.options), "response_format": {"type": "json_object"}}
    chat.screen.say("Set format to 'json' mode.")


def _set_noformat(chat: Chat, _: str) -> None:
    chat.options = _of_any_form(chat.options)
    chat.screen.say("Disabled format.")


def _of_any_form(options: GenerationOptions) -> GenerationOptions:
    from qllama.generation.constraint import ConstraintOptions

    forms = ConstraintOptions.__annotations__
    return cast("GenerationOptions", {k: v for k, v in options.items() if k not in forms})


def _set_verbose(chat: Chat, _: str) -> None:
    chat.verbose = True
    chat.screen.say("Set 'verbose' mode.")


def _set_quiet(chat: Chat, _: str) -> None:
    chat.verbose = False
    chat.screen.say("Set 'quiet' mode.")


VARIABLES = {
    "parameter": Variable("...", "Set a parameter", _set_parameter),
    "system": Variable("<string>", "Set system message", _set_system),
    "history": Variable("", "Enable history", _set_history),
    "nohistory": Variable("", "Disable history", _set_nohistory),
    "wordwrap": Variable("", "Enable wordwrap", _set_wordwrap),
    "nowordwrap": Variable("", "Disable wordwrap and markdown, as for copying", _set_nowordwrap),
    "format": Variable("json", "Enable JSON mode", _set_format),
    "noformat": Variable("", "Disable formatting", _set_noformat),
    "verbose": Variable("", "Show LLM stats", _set_verbose),
    "quiet": Variable("", "Disable LLM stats", _set_quiet),
}
