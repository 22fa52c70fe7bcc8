"""A model and a conversation with it: asks, keeps what was said, and how it is asked.

Owns the state that commands act upon. Shows itself on a `Screen` and knows no more of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qllama.cli.repl.asking import Asking
from qllama.cli.repl.conversation import Conversation, Turn
from qllama.cli.repl.overflow import DEFAULT_POLICY
from qllama.cli.statistics import statistics_table

if TYPE_CHECKING:
    from qllama.api import Llama
    from qllama.cli.repl.screen import Screen
    from qllama.generation.generator import GenerationOptions
    from qllama.generation.results import Timings

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
    on_overflow : str
        One of `overflow.POLICIES`.
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
    on_overflow : str
    verbose : bool
    remembers : bool
        Whether what is typed is kept for later sessions.
    attached : str
        Text that goes before the next question.
    n_used : int
        Tokens of the context window that the conversation takes.
    timings : Timings or None
        Of the last answer.
    """

    def __init__(
        self,
        opened: OpenedModel,
        open_model: OpenModel,
        screen: Screen,
        *,
        on_overflow: str = DEFAULT_POLICY,
        verbose: bool = False,
    ) -> None:
        self.screen = screen
        self.on_overflow = on_overflow
        self.verbose = verbose
        self.remembers = True
        self._open_model = open_model
        self._take(opened)

    def _take(self, opened: OpenedModel) -> None:
        self.name, self.llm, self.options = opened.name, opened.llm, opened.options
        self.timings: Timings | None = None
        self.resume(Conversation(opened.system))

    def status(self, width: int) -> str:
        """Return how full the context window is and how fast the last answer came.

        Parameters
        ----------
        width : int
            Characters of the line; where it is too short, the model's name is left out.
        """
        n_ctx = self.llm.n_ctx
        name = self.name.rpartition("/")[2]
        parts = [name, f"context {self.n_used}/{n_ctx} ({self.n_used / n_ctx:.0%})"]
        if self.timings is not None:
            parts.append(f"{self.timings.completion_rate:.1f} tokens/s")
        line = " · ".join(parts)
        return line if len(line) <= width else " · ".join(parts[1:])

    def resume(self, conversation: Conversation) -> None:
        """Go on with another `conversation`."""
        self.conversation = conversation
        self.attached = ""
        self._count()

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
        self.llm, self.timings = opened.llm, None

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.resume(Conversation(self.conversation.system))

    def undo(self) -> str | None:
        """Take the last turn back and return its question; None when there is none."""
        turns = self.conversation.turns
        question = turns.pop().question if turns else None
        self._count()
        return question

    def ask(self, text: str) -> None:
        """Answer `text`; what was said before a Ctrl-C or an error stays said.

        Parameters
        ----------
        text : str
            The question; attached texts go before it.
        """
        attached, self.attached = self.attached, ""
        asking = self._ask(attached + text)
        if asking.interrupted and not asking.answer and attached:
            self.attached = attached
            self.screen.say("The text of /read goes with your next message.")

    def ask_instead(self, text: str) -> None:
        """Answer `text` in the place of the last turn, which stays where there is no answer."""
        turns = self.conversation.turns
        last = turns[-1:]
        del turns[-1:]
        if not self._ask(text).answer:
            turns += last
            self._count()

    def _ask(self, question: str) -> Asking:
        asking = Asking(self.llm, self.conversation, self.options, self.on_overflow)
        asking.ask(question, self.screen)
        if asking.answer:
            self.conversation.turns.append(Turn(asking.question, asking.answer))
        if asking.timings is not None:
            timings, self.n_used = asking.timings, asking.n_used
            if self.timings is not None:  # an answer before it was what the model was loaded for
                timings = replace(timings, load_seconds=0.0)
            self.timings = timings
            if self.verbose:
                self.screen.say(f"{statistics_table(timings)}\n")
        if not asking.answer:  # the question was dropped, and turns may have been before it
            self._count()
        return asking

    def _count(self) -> None:
        messages = self.conversation.messages()
        self.n_used = len(self.llm.tokenize_chat(messages)) if self.conversation.turns else 0
