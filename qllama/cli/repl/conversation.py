"""What was said so far: the system message and turns of a question and its answer.

Owns the transcript only. Knows neither models nor the terminal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Conversation", "Message", "Turn", "opening_messages"]

Message = dict[str, str]


def opening_messages(system: str | None) -> list[Message]:
    """Return how a conversation begins: with the `system` message, empty or not, if given."""
    return [] if system is None else [{"role": "system", "content": system}]


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and what was said to it.

    Parameters
    ----------
    question, answer : str
        Neither is empty: a question that got no answer is no turn, since two user
        messages in a row are what many chat templates refuse.
    """

    question: str
    answer: str


@dataclass(slots=True)
class Conversation:
    """A system message and the turns after it.

    Parameters
    ----------
    system : str or None
        None lets the chat template put in its own; "" keeps it from that.
    turns : list of Turn
        Oldest first.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def messages(self, question: str | None = None, *, skip: int = 0) -> list[Message]:
        """Return what was said as chat templates take it.

        Parameters
        ----------
        question : str, optional
            Said after it.
        skip : int
            So many of the oldest turns are left out.
        """
        messages = opening_messages(self.system)
        for turn in self.turns[skip:]:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        if question is not None:
            messages.append({"role": "user", "content": question})
        return messages
