"""What generation hands to its caller: text that also says how it came about.

Owns plain records only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from qllama.generation.logprobs import TokenLogprob

__all__ = ["Completion", "FinishReason", "Piece", "Timings"]

FinishReason = Literal["stop", "length", "cancelled", "timeout", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one answer went.

    Parameters
    ----------
    load_seconds : float
        Opening the model and making its kernels ready, once a `Llama`.
    prompt_tokens, reused_tokens : int
        Tokens of the prompt, and how many of them needed no evaluation because the
        KV cache held them from an earlier call.
    prompt_seconds : float
        Evaluating the prompt, waiting for the lock not included.
    completion_tokens : int
        Tokens chosen so far, the one that ended the answer included.
    completion_seconds : float
        Choosing and evaluating them; time that the caller spent between two pieces
        of a stream does not count.
    guessed_tokens, accepted_tokens : int
        Tokens that were guessed and evaluated ahead of their turn, and how many of them
        were then chosen.
    """

    load_seconds: float
    prompt_tokens: int
    reused_tokens: int
    prompt_seconds: float
    completion_tokens: int
    completion_seconds: float
    guessed_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def evaluated_tokens(self) -> int:
        """Prompt tokens that had to be evaluated."""
        return self.prompt_tokens - self.reused_tokens

    @property
    def prompt_rate(self) -> float:
        """Evaluated prompt tokens a second; 0 before any."""
        return _rate(self.evaluated_tokens, self.prompt_seconds)

    @property
    def completion_rate(self) -> float:
        """Chosen tokens a second; 0 before any."""
        return _rate(self.completion_tokens, self.completion_seconds)

    @property
    def acceptance(self) -> float:
        """What part of the guessed tokens was chosen; 0 before any."""
        return self.accepted_tokens / max(1, self.guessed_tokens)

    @property
    def total_seconds(self) -> float:
        """Loading, prompt and completion together."""
        return self.load_seconds + self.prompt_seconds + self.completion_seconds


class Piece(str):
    """The next part of a streamed answer, a `str`.

    Attributes
    ----------
    token_ids : tuple of int
        The tokens chosen since the last piece. Their text may be in a later piece,
        while a character is incomplete or a stop string may have begun.
    finish_reason : str or None
        On the last piece of an answer: `stop` (the model ended it, or a stop string
        or stop token did), `length` (`max_tokens` reached or the context window
        full), `cancelled` or `timeout`. None on every other.
    timings : Timings or None
        What the answer took so far.
    logprobs : tuple of TokenLogprob or None
        Of `token_ids`, where `logprobs` was asked for.
    """

    __slots__ = ("finish_reason", "logprobs", "timings", "token_ids")

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    timings: Timings | None
    logprobs: tuple[TokenLogprob, ...] | None

    def __new__(
        cls,
        text: str,
        token_ids: tuple[int, ...] = (),
        finish_reason: FinishReason | None = None,
        timings: Timings | None = None,
        logprobs: tuple[TokenLogprob, ...] | None = None,
    ) -> Piece:
        """Make a piece of `text`; the other parameters are the attributes."""
        piece = super().__new__(cls, text)
        piece.token_ids = token_ids
        piece.finish_reason = finish_reason
        piece.timings = timings
        piece.logprobs = logprobs
        return piece


class Completion(str):
    """A whole answer, a `str`.

    Attributes
    ----------
    token_ids : tuple of int
        Every token chosen, the one that ended the answer included.
    finish_reason : str
        `stop`, `length`, `cancelled` or `timeout`, as in `Piece`; `tool_calls` where the
        answer calls tools.
    seed : int
        Of the random draws, also when it was chosen at random: given again with
        the same prompt and parameters, it gives the same answer.
    timings : Timings
        What the answer took.
    logprobs : tuple of TokenLogprob or None
        Of `token_ids`, where `logprobs` was asked for.
    tool_calls : tuple of dict
        Calls of tools in the answer, in the OpenAI API's shape.
    """

    __slots__ = ("finish_reason", "logprobs", "seed", "timings", "token_ids", "tool_calls")

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    seed: int
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None
    tool_calls: tuple[dict[str, Any], ...]

    def __new__(
        cls,
        text: str,
        token_ids: tuple[int, ...],
        finish_reason: FinishReason,
        seed: int,
        timings: Timings,
        logprobs: tuple[TokenLogprob, ...] | None = None,
        tool_calls: tuple[dict[str, Any], ...] = (),
    ) -> Completion:
        """Make a completion of `text`; the other parameters are the attributes."""
        completion = super().__new__(cls, text)
        completion.token_ids = token_ids
        completion.finish_reason = finish_reason
        completion.seed = seed
        completion.timings = timings
        completion.logprobs = logprobs
        completion.tool_calls = tool_calls
        return completion

    def __getnewargs__(self) -> tuple[Any, ...]:
        # Without them, copies and pickles would call __new__ with the text alone.
        return (
            *(str(self), self.token_ids, self.finish_reason),
            *(self.seed, self.timings, self.logprobs, self.tool_calls),
        )

    def _repr_html_(self) -> str:
        """Show the text as it is in notebooks, and what it took below."""
        import html

        return (
            f'<div style="white-space: pre-wrap">{html.escape(str(self))}</div>'
            f"<small>{self.completion_tokens} tokens, {self.finish_reason}, "
            f"{self.timings.completion_rate:.1f} tokens/s</small>"
        )

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.timings.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens chosen, the one that ended the answer included."""
        return self.timings.completion_tokens


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
