"""One question and its answer, with what it takes to fit them into the context window.

Owns the course of an answer: interruptions, errors, and making room by the policies of
`overflow`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from qllama.cli.interrupts import ctrl_c_cancels
from qllama.cli.repl.overflow import first_that_fits, tokens_to_keep
from qllama.errors import ContextLengthError, QllamaError

if TYPE_CHECKING:
    from qllama.api import Llama
    from qllama.cli.repl.conversation import Conversation
    from qllama.cli.repl.screen import Reply, Screen
    from qllama.generation.generator import GenerationOptions
    from qllama.generation.loop import Stream
    from qllama.generation.results import Piece, Timings

__all__ = ["Asking"]


class Asking:
    """Asks one question.

    Parameters
    ----------
    llm : Llama
    conversation : Conversation
        What was said before; loses turns where there is no room for them.
    options : GenerationOptions
        Of the answer.
    on_overflow : str
        One of `overflow.POLICIES`.

    Attributes
    ----------
    question, answer : str
        As far as they came; right also after an interruption.
    interrupted : bool
        Whether Ctrl-C ended it.
    timings : Timings or None
        What the answer took; None without a token of it.
    n_used : int
        Tokens of the context window after it.
    """

    def __init__(
        self,
        llm: Llama,
        conversation: Conversation,
        options: GenerationOptions,
        on_overflow: str,
    ) -> None:
        self._llm = llm
        self._conversation = conversation
        self._options = options
        self._on_overflow = on_overflow
        self._token_ids: list[int] = []
        self._notices: list[str] = []
        self.question = ""
        self.answer = ""
        self.interrupted = False
        self.timings: Timings | None = None
        self.n_used = 0

    def ask(self, question: str, screen: Screen) -> None:
        """Ask `question` and show the answer on `screen`, and then what there is to say of it."""
        self.question = question
        reply = screen.reply()
        try:
            stream = self._stream(reply.progress)
            # Before the answer: what is left of the conversation may take a while to read.
            self._tell(screen)
            with reply:
                while self._show(stream, reply) and self._make_room_for_answer():
                    stream = self._continue(reply)
        except KeyboardInterrupt:
            self.interrupted = True
        except (QllamaError, ValueError) as error:
            self._notices.append(f"error: {error}")
        self._tell(screen)

    def start(self, question: str, on_progress: Callable[[int, int], None]) -> Stream:
        """Return the answer to `question`, to be taken elsewhere; `notices` then says more.

        Parameters
        ----------
        question : str
        on_progress : callable
            Given tokens of the prompt that are read, and all.

        Raises
        ------
        ContextLengthError
            When there is no room for it, and the policy makes none.
        """
        self.question = question
        return self._stream(on_progress)

    def notices(self) -> list[str]:
        """Return what there is to say that was not said yet."""
        notices, self._notices = self._notices, []
        return notices

    def _tell(self, screen: Screen) -> None:
        for notice in self.notices():
            screen.say(notice)

    def _show(self, stream: Stream, reply: Reply) -> bool:
        """Show what `stream` gives; return whether it ended because the window is full."""
        last: Piece | None = None
        with ctrl_c_cancels(stream):
            for piece in stream:
                # Kept before it is shown: an interrupt in between must not lose it.
                self.answer += piece
                self._token_ids += piece.token_ids
                last = piece
                reply.write(piece)
        if last is None or last.timings is None:
            return False
        self.interrupted = last.finish_reason == "cancelled"
        if last.timings.completion_tokens == 0:
            return False
        self.timings = _sum(self.timings, last.timings)
        self.n_used = last.timings.prompt_tokens + last.timings.completion_tokens
        return (
            last.finish_reason == "length" and self.n_used >= self._llm.n_ctx and self._n_left != 0
        )

    @property
    def _n_left(self) -> int:
        """Tokens that the answer may still have; -1 is without limit."""
        limit = self._options.get("max_tokens")
        return -1 if limit is None or limit < 0 else max(0, limit - len(self._token_ids))

    def _stream(self, on_progress: Callable[[int, int], None]) -> Stream:
        """Return the answer to the question, after making room for it where that is needed."""
        options = self._options.copy()
        options["on_progress"] = on_progress
        try:
            messages = self._conversation.messages(self.question)
            return self._llm.chat(messages, stream=True, **options)
        except ContextLengthError:
            if self._on_overflow == "error" and self._conversation.turns:
                raise ContextLengthError(
                    f"the conversation takes {self._n_tokens(0)} tokens with this message, more "
                    f"than the context window of {self._llm.n_ctx}: /undo or /clear makes room, "
                    "/set parameter num_ctx N sets its size"
                ) from None
            self._make_room_for_question()
            messages = self._conversation.messages(self.question)
            return self._llm.chat(messages, stream=True, **options)

    def _make_room_for_question(self) -> None:
        limit = self._llm.n_ctx - 1
        n_alone = self._n_tokens(len(self._conversation.turns))
        if n_alone > limit:
            if self._on_overflow != "truncate":
                raise ContextLengthError(
                    f"the message takes {n_alone} tokens with the system message, too many for the "
                    f"context window of {self._llm.n_ctx}: shorten it, make the window larger "
                    "(-c, /set parameter num_ctx), or have it cut (--on-overflow truncate)"
                )
            self._forget(len(self._conversation.turns))
            self._cut_question()
            return
        self._forget(self._n_turns_too_many())

    def _cut_question(self) -> None:
        whole = self.question

        def n_tokens(n_cut: int) -> int:
            self.question = whole[n_cut:]
            return self._n_tokens(0)

        n_cut = first_that_fits(len(whole) - 1, n_tokens, tokens_to_keep(self._llm.n_ctx))
        self.question = whole[n_cut:]
        self._notices.append(
            f"Context window full: cut the first {n_cut} of the message's {len(whole)} characters."
        )

    def _make_room_for_answer(self) -> bool:
        """Forget turns in the middle of an answer; return whether it can go on."""
        from qllama.generation.constraint import ConstraintOptions

        # A form holds from the answer's beginning, and could not be taken up in the middle.
        is_free = not ConstraintOptions.__annotations__.keys() & self._options
        n_too_many = self._n_turns_too_many() if self._on_overflow == "shift" and is_free else 0
        if n_too_many == 0:
            self._notices.append(
                "Stopped because the context window is full; "
                "/set parameter num_ctx N sets its size."
            )
            return False
        self._forget(n_too_many)
        return True

    def _continue(self, reply: Reply) -> Stream:
        """Return the rest of the answer: it goes on from its own tokens."""
        options = self._options.copy()
        options["on_progress"] = reply.progress
        options["max_tokens"] = self._n_left
        prompt = self._llm.tokenize_chat(self._conversation.messages(self.question))
        return self._llm.generate([*prompt, *self._token_ids], stream=True, **options)

    def _forget(self, n_turns: int) -> None:
        if n_turns == 0:
            return
        del self._conversation.turns[:n_turns]
        turns = "the oldest turn" if n_turns == 1 else f"the oldest {n_turns} turns"
        kept = "" if self._conversation.system is None else "; the system message stays"
        self._notices.append(f"Context window full: forgot {turns}{kept}.")

    def _n_turns_too_many(self) -> int:
        n_turns = len(self._conversation.turns)
        return first_that_fits(n_turns, self._n_tokens, tokens_to_keep(self._llm.n_ctx))

    def _n_tokens(self, skip: int) -> int:
        """Tokens of the question and its answer so far after all but `skip` turns."""
        messages = self._conversation.messages(self.question, skip=skip)
        return len(self._llm.tokenize_chat(messages)) + len(self._token_ids)


def _sum(before: Timings | None, more: Timings) -> Timings:
    """Return what two parts of one answer took together."""
    if before is None:
        return more
    return dataclasses.replace(
        before,
        prompt_tokens=before.prompt_tokens + more.prompt_tokens,
        reused_tokens=before.reused_tokens + more.reused_tokens,
        prompt_seconds=before.prompt_seconds + more.prompt_seconds,
        completion_tokens=before.completion_tokens + more.completion_tokens,
        completion_seconds=before.completion_seconds + more.completion_seconds,
        guessed_tokens=before.guessed_tokens + more.guessed_tokens,
        accepted_tokens=before.accepted_tokens + more.accepted_tokens,
    )
