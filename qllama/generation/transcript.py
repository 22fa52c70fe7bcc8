"""What chats said last, as text and as the tokens it was really made of.

Owns how a conversation that goes on becomes tokens again. Knows neither messages
nor templates: it sees rendered prompts only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qllama.tokenizer.base import Tokenizer
from qllama.tokenizer.detokenizer import StreamingDetokenizer

__all__ = ["Answer", "Transcript", "Turn"]

# One is enough for a conversation that only goes on; a few more serve one whose last
# turn is asked anew, and a second conversation beside it.
_MOST_TURNS = 4


class Answer(Protocol):
    """What a transcript needs of a `Stream`."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token chosen so far."""


@dataclass(frozen=True, slots=True)
class _Given:
    """An answer of an earlier time."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt and its answer.

    Parameters
    ----------
    prompt : str
        As rendered.
    prompt_ids : sequence of int
        What it was encoded as.
    answer : Answer
    """

    prompt: str
    prompt_ids: Sequence[int]
    answer: Answer

    @property
    def token_ids(self) -> list[int]:
        """Of prompt and answer."""
        return [*self.prompt_ids, *self.answer.token_ids]

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)


class Transcript:
    """Encodes the prompts of chats so that what was evaluated can be used again.

    The model may choose tokens that its tokenizer would not: `Hel` and `lo` for a
    `Hello` that is one token. If the next prompt, which has that answer as text, were
    encoded anew, it would differ from the tokens in the KV cache from there on. So a
    prompt that begins with a remembered prompt and all of its answer gets the tokens
    of these, and only the rest is encoded: provided that it begins with a control
    token, where no tokenizer joins what stands before with what follows.

    Parameters
    ----------
    tokenizer : Tokenizer
        The model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Newest first; replaced, never changed: several threads may chat.
        self._turns: tuple[Turn, ...] = ()

    def remember(self, prompt: str, prompt_ids: Sequence[int], answer: Answer) -> None:
        """Note that `answer` answers `prompt`; it may still be in the making.

        Parameters
        ----------
        prompt : str
            As rendered.
        prompt_ids : sequence of int
            What `encode` returned for it.
        answer : Answer
            Asked for its tokens when a later prompt is encoded.
        """
        self._turns = (Turn(prompt, prompt_ids, answer), *self._turns)[:_MOST_TURNS]

    def encode(self, prompt: str) -> list[int]:
        """Return the token ids of a rendered `prompt`, control tokens parsed.

        Raises
        ------
        TokenizerError
            When it cannot be expressed in UTF-8.
        """
        for turn in sorted(self._turns, key=lambda turn: -len(turn.prompt)):
            if prompt.startswith(turn.prompt):
                ids = self._continued(turn, prompt)
                if ids is not None:
                    return ids
        return self._tokenizer.encode(prompt, add_special=True, parse_special=True, add_eos=False)

    def turn_of(self, tokens: Sequence[int]) -> Turn | None:
        """Return the newest turn that `tokens` are the beginning of, if there is one."""
        for turn in self._turns:
            if turn.token_ids[: len(tokens)] == list(tokens):
                return turn
        return None

    def restore(self, prompt: str, ids: Sequence[int], n_prompt: int) -> None:
        """Remember a turn of another transcript.

        Parameters
        ----------
        prompt : str
        ids : sequence of int
            Its `token_ids`.
        n_prompt : int
            How many of them are the prompt's.
        """
        self.remember(prompt, ids[:n_prompt], _Given(tuple(ids[n_prompt:])))

    def _continued(self, turn: Turn, prompt: str) -> list[int] | None:
        """Return the ids of `prompt`, which begins with the turn's, if its answer follows."""
        answer_ids = turn.answer.token_ids
        if answer_ids and self._tokenizer.is_special(answer_ids[-1]):
            # It ended the answer; the template writes what ends a message.
            answer_ids = answer_ids[:-1]
        # A control token within the answer is spelled here, but not in its text: no match.
        stream = StreamingDetokenizer(self._tokenizer, previous=turn.prompt_ids[-1])
        text = turn.prompt + "".join(map(stream.push, answer_ids)) + stream.flush()
        if not prompt.startswith(text):
            return None
        rest = self._tokenizer.encode(prompt[len(text) :], add_special=False, parse_special=True)
        if not rest or not self._tokenizer.is_special(rest[0]):
            return None
        return [*turn.prompt_ids, *answer_ids, *rest]
