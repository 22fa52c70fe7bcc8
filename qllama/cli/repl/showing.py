"""`/show`: what a session knows of its model and of itself.

Owns topics and their layout, ollama's where it has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qllama.cli.repl.parameters import NUM_CTX, PARAMETERS
from qllama.cli.repl.wording import table, unknown

if TYPE_CHECKING:
    from qllama.cli.repl.chat import Chat

__all__ = ["TOPICS", "show", "usage"]


def show(chat: Chat, topic: str) -> None:
    """Obey `/show`.

    Parameters
    ----------
    chat : Chat
        What is shown, and where.
    topic : str
        One of `TOPICS`; "" shows their help.
    """
    if not topic:
        chat.screen.say(usage())
    elif topic in TOPICS:
        chat.screen.say(TOPICS[topic][1](chat) + "\n")
    else:
        chat.screen.say(unknown(topic, TOPICS, before="/show "))


def usage() -> str:
    """Return the help of `/show`."""
    rows = [(f"/show {topic}", text) for topic, (text, _) in TOPICS.items()]
    return f"Available Commands:\n{table(rows)}\n"


def _info(chat: Chat) -> str:
    from rich.console import Console

    from qllama.cli.inspection.short_card import short_card
    from qllama.cli.inspection.tables import as_table
    from qllama.format.reader import QlmFile

    with QlmFile.open(chat.llm.model_path) as file:
        return as_table(short_card(file), Console(color_system=None))


def _parameters(chat: Chat) -> str:
    values = {NUM_CTX: chat.llm.n_ctx, **chat.options}
    lines = [f"  {p.name:<30} {_shown(values.get(p.option))}".rstrip() for p in PARAMETERS]
    return "\n".join(["Parameters in use:", *lines])


def _system(chat: Chat) -> str:
    return chat.conversation.system or "No system message was specified for this model."


def _template(chat: Chat) -> str:
    return chat.llm.chat_template or "No prompt template was specified for this model."


def _context(chat: Chat) -> str:
    n_used, n_ctx = chat.n_used, chat.llm.n_ctx
    rows = (
        ("context length", f"{n_ctx} tokens"),
        ("used", f"{n_used} tokens ({n_used / n_ctx:.0%})"),
        ("turns", len(chat.conversation.turns)),
    )
    lines = [f"    {label:<19} {value}" for label, value in rows]
    return "\n".join(["  Context", *lines])


def _shown(value: object) -> str:
    """Return an option's value as `/set parameter` takes it."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


TOPICS: dict[str, tuple[str, Callable[[Chat], str]]] = {
    "info": ("Show details for this model", _info),
    "parameters": ("Show parameters in use", _parameters),
    "system": ("Show system message", _system),
    "template": ("Show prompt template", _template),
    "context": ("Show how full the context window is", _context),
}
