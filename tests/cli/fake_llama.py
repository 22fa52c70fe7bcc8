"""A model that answers from a script; run as a program, the command line that talks with it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from qllama.errors import ContextLengthError, QllamaError, StateError
from qllama.generation.results import Piece, Timings
from qllama.hub import registry

TIMINGS = Timings(
    load_seconds=0.5,
    prompt_tokens=30,
    reused_tokens=20,
    prompt_seconds=0.04,
    completion_tokens=50,
    completion_seconds=2.0,
    guessed_tokens=8,
    accepted_tokens=6,
)


class FakeLlama:
    """Gives each call the next of `answers`, each the pieces of one.

    Parameters
    ----------
    answers : sequence
        Of lists of texts or pieces. In the place of a piece, an exception is raised and a
        function called.
    delay : float
        Seconds before each piece.
    """

    def __init__(self, answers: Sequence[Sequence[str | BaseException]], delay: float = 0) -> None:
        self._answers = iter(answers)
        self._delay = delay
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        """Prompt or messages, and options, of every call."""
        self.loaded: list[tuple[Any, Any]] = []
        """Model and runtime options of every load."""
        self.chat_template: Any = "{{ messages }}"
        self.n_ctx = 100
        self.closed = False
        self.state: bytes | None = None
        """What was loaded."""
        self.refuses_states = False
        self.reads: list[tuple[int, int]] = []
        """What is told of the reading of a prompt."""

    def load(self, model: Any, runtime: Any) -> FakeLlama:
        self.loaded.append((model, runtime))
        known = registry.find(model or registry.DEFAULT_MODEL)
        self.provenance = {} if known is None else {"sha256": known.sha256}
        return self

    def chat(
        self, messages: Any, *, stream: bool, on_progress: Any = None, **options: Any
    ) -> FakeStream:
        assert stream
        if (n_tokens := len(self.tokenize_chat(messages))) > self.n_ctx:
            raise ContextLengthError(f"{n_tokens} tokens do not fit {self.n_ctx}")
        self.calls.append(([dict(message) for message in messages], options))
        for read in self.reads:
            on_progress(*read)
        return FakeStream(next(self._answers), self._delay)

    def tokenize_chat(self, messages: Any) -> list[int]:
        return [ord(c) for message in messages for c in "\0" + message["content"]]

    def save_state(self) -> bytes:
        return b"the state"

    def load_state(self, state: memoryview) -> None:
        if self.refuses_states:
            # As long as the traceback lives, so does what the real one has looked at.
            header = state[:4]
            assert header
            raise StateError("state: it is of another model")
        self.state = bytes(state)

    def tokenize(self, text: str, add_bos: bool = True) -> list[int]:
        return [ord(character) for character in text]

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        return "".join(map(chr, ids))

    def close(self) -> None:
        self.closed = True

    def generate(
        self, prompt: Any, *, stream: bool, on_progress: Any = None, **options: Any
    ) -> FakeStream:
        assert stream
        self.calls.append((prompt, options))
        for read in self.reads:
            on_progress(*read)
        return FakeStream(next(self._answers), self._delay)


class FakeStream:
    """One answer of a FakeLlama."""

    def __init__(self, pieces: Sequence[str | BaseException], delay: float) -> None:
        self._pieces = pieces
        self._delay = delay
        self._cancelled = False
        self.seed = 7
        self.timings = TIMINGS
        self.finish_reason: str | None = None

    def cancel(self) -> None:
        self._cancelled = True

    def __iter__(self) -> Iterator[Piece]:
        for i, piece in enumerate(self._pieces):
            time.sleep(self._delay)
            if self._cancelled:
                self.finish_reason = "cancelled"
                yield Piece("", (), "cancelled", TIMINGS)
                return
            if isinstance(piece, BaseException):
                raise piece
            if isinstance(piece, Piece):
                self.finish_reason = piece.finish_reason
                yield piece
                continue
            if callable(piece):
                piece()
                continue
            last = i == len(self._pieces) - 1
            self.finish_reason = "stop" if last else None
            yield Piece(piece, (i,), self.finish_reason, TIMINGS if last else None)


def main() -> None:
    """Chat with a model that counts to 1000, or says what it was told before."""
    import qllama.cli.chat as chat_command
    from qllama.cli import cli

    class Parrot(FakeLlama):
        def load(self, model: Any, runtime: Any) -> FakeLlama:
            if model == "slow":
                time.sleep(2)
            return super().load(model, runtime)

        def chat(self, messages: Any, **options: Any) -> FakeStream:
            said = messages[-1]["content"]
            if said == "count":
                self._answers = iter([[f"{i} " for i in range(1000)]])
            elif said == "fail":
                self._answers = iter([["half", QllamaError("no more")]])
            else:
                roles = " ".join(m["role"] for m in messages)
                self._answers = iter([["You said: ", said, f" [{roles}]"]])
            return super().chat(messages, **options)

    parrot = Parrot([], delay=0.02)
    chat_command.load_model = parrot.load
    # A file of its own, so that no registered model's defaults come in.
    cli.main(["chat", "parrot.qlm", *sys.argv[1:]])


if __name__ == "__main__":
    main()
