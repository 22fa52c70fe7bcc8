"""A model and a conversation with it: asks, keeps what was said, and how it is asked.

Owns the state that commands act upon. Shows itself on a `Screen` and knows no more of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qllama.cli.interrupts import ctrl_c_cancels
from qllama.cli.repl.conversation import Conversation, Turn
from qllama.cli.statistics import statistics_table
from qllama.errors import QllamaError

if TYPE_CHECKING:
    from qllama.api import Llama
    from qllama.cli.repl.screen import Screen
    from qllama.generation.generator import GenerationOptions
    from qllama.generation.results import Piece, Timings

__all__ = ["Chat", "OpenModel", "OpenedModel"]


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model, and how a chat with it begins.

    Parameters
    ----------
    name : str
        As the user named it.
    llm : Llama
        Answers; it keeps the conversation's evaluated tokens between turns.
    system : str or None
        System message.
    options : GenerationOptions
        Of every answer.
    """

    name: str
    llm: Llama
    system: str | None
    options: GenerationOptions


#: Opens the model of a name with a context window of so many tokens, 0 for its own.
OpenModel = Callable[[str, int], OpenedModel]


class Chat:
    """A conversation with a model.

    Parameters
    ----------
    opened : OpenedModel
        The first model.
    open_model : callable
        Opens others.
    screen : Screen
        Shows answers and remarks.
    verbose : bool
        Print statistics after each answer.

    Attributes
    ----------
    llm : Llama
    name : str
        Of the model.
    conversation : Conversation
    options : GenerationOptions
        Of the next answer.
    screen : Screen
    verbose : bool
    remembers : bool
        Whether what is typed is kept for later sessions.
    attached : str
        Text that goes before the next question.
    timings : Timings or None
        Of the last answer.
    """

    def __init__(
        self, opened: OpenedModel, open_model: OpenModel, screen: Screen, *, verbose: bool = False
    ) -> None:
        self.screen = screen
        self.verbose = verbose
        self.remembers = True
        self._open_model = open_model
        self._take(opened)

    def _take(self, opened: OpenedModel) -> None:
        self.name, self.llm, self.options = opened.name, opened.llm, opened.options
        self.conversation = Conversation(opened.system)
        self.attached = ""
        self.timings: Timings | None = None

    @property
    def n_used(self) -> int:
        """Tokens of the context window that the last answer left taken."""
        if self.timings is None or not self.conversation.turns:
            return 0
        return self.timings.prompt_tokens + self.timings.completion_tokens

    @property
    def status(self) -> str:
        """How full the context window is and how fast the last answer came, in one line."""
        n_used, n_ctx = self.n_used, self.llm.n_ctx
        parts = [self.name, f"context {n_used}/{n_ctx} ({n_used / n_ctx:.0%})"]
        if self.timings is not None:
            parts.append(f"{self.timings.completion_rate:.1f} tokens/s")
        return " · ".join(parts)

    def load(self, name: str) -> None:
        """Talk with another model from now on, and begin anew.

        Parameters
        ----------
        name : str
            As `qllama chat` takes it.

        Raises
        ------
        QllamaError
            When it cannot be opened; the chat goes on with the present one.
        """
        opened = self._open_model(name, 0)
        self.llm.close()
        self._take(opened)

    def set_context(self, n_ctx: int) -> None:
        """Open the model again with a context window of `n_ctx` tokens; the talk goes on.

        Raises
        ------
        QllamaError
            When it cannot have that window.
        """
        opened = self._open_model(self.name, n_ctx)
        self.llm.close()
        self.llm = opened.llm

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.conversation.turns.clear()
        self.attached = ""

    def undo(self) -> str | None:
        """Take the last turn back and return its question; None when there is none."""
        turns = self.conversation.turns
        return turns.pop().question if turns else None

    def ask(self, text: str) -> None:
        """Answer `text`; what was said before a Ctrl-C or an error stays said.

        Parameters
        ----------
        text : str
            The question; attached texts go before it.
        """
        question, self.attached = self.attached + text, ""
        answer: list[Piece] = []
        try:
            reply = self.screen.reply()
            options = self.options.copy()
            options["on_progress"] = reply.progress
            stream = self.llm.chat(self.conversation.messages(question), stream=True, **options)
            with reply, ctrl_c_cancels(stream):
                for piece in stream:
                    # Kept before it is shown: an interrupt in between must not lose it.
                    answer.append(piece)
                    reply.write(piece)
        except KeyboardInterrupt:
            pass
        except (QllamaError, ValueError) as error:
            self.screen.say(f"error: {error}")
        if said := "".join(answer):
            self.conversation.turns.append(Turn(question, said))
        if answer:
            self._remark(answer[-1])

    def _remark(self, last: Piece) -> None:
        """Say what an answer that ended with `last` does not say itself."""
        if last.timings is None:
            return
        self.timings = last.timings
        if last.finish_reason == "length" and self.options.get("max_tokens") == -1:
            self.screen.say("Stopped because the context window is full; -c sets its size.")
        if self.verbose:
            self.screen.say(f"{statistics_table(last.timings)}\n")
