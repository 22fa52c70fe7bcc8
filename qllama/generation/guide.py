"""Which tokens a constraint allows next, by `llguidance`.

Owns how a vocabulary and a constraint become that library's, and what it says becomes
a mask. The library is imported when the first constraint is compiled.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qllama.errors import SamplingError, TokenizerError
from qllama.generation.constraint import Constraint
from qllama.generation.json_schema import ONE_LINE
from qllama.tokenizer.base import Tokenizer, one_line

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["Guide", "Guides", "masked"]

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)

# Programs ask many questions with few schemas.
_MOST_COMPILED = 32

_ALONE = "\x02"


class Guide:
    """What one answer may go on with, as far as it is.

    Parameters
    ----------
    new_matcher : callable
        Returns a fresh one; called once, when it is first needed: it may have to compile.
    constraint : Constraint
        What it was made of, for errors.
    vocab_size : int
        Tokens that there are; the matcher's end token is the one after them.
    ends : collection of int
        Tokens that end the answer: they may come when it is whole.
    """

    def __init__(
        self,
        new_matcher: Callable[[], LLMatcher],
        constraint: Constraint,
        vocab_size: int,
        ends: Collection[int],
    ) -> None:
        self._new_matcher = new_matcher
        self._constraint = constraint
        self._end = vocab_size
        self._ends = np.array([token for token in ends if token < vocab_size], np.intp)

    @functools.cached_property
    def _matcher(self) -> LLMatcher:
        return self._new_matcher()

    def prepare(self) -> None:
        """Compile now what was not compiled yet.

        Raises
        ------
        ValueError
            When the constraint is malformed, or asks for what the library cannot do.
        """
        self._check()

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which tokens may come next, bool (vocab_size,).

        Raises
        ------
        SamplingError
            When the constraint takes more than the library's limits allow.
        """
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        bits = np.unpackbits(packed, count=self._end + 1, bitorder="little").view(np.bool_)
        bits[self._ends] = bits[self._end]
        return bits[: self._end]

    def accept(self, token: int) -> bool:
        """Note that `token`, which is allowed, came; return whether nothing can follow it.

        Parameters
        ----------
        token : int
            Not one that ends the answer.

        Raises
        ------
        SamplingError
            As `allowed`.
        """
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def copy(self) -> Guide:
        """Return a guide in the same place, for another way to go on."""
        return Guide(self._matcher.deep_copy, self._constraint, self._end, self._ends.tolist())

    def forced(self) -> list[int]:
        """Return the next tokens as far as there is no choice."""
        return self._matcher.compute_ff_tokens()

    def allows(self, tokens: Sequence[int]) -> bool:
        """Whether `tokens` may come next, one after the other, none of them an end."""
        return self._matcher.validate_tokens(list(tokens)) == len(tokens)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise SamplingError(f"{self._constraint.option}: {_first_line(self._matcher)}")


class Guides:
    """Compiles constraints for one tokenizer, and remembers the last ones.

    Parameters
    ----------
    tokenizer : Tokenizer
        The model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[tuple[Constraint, bool], LLMatcher] = OrderedDict()

    def guide(self, constraint: Constraint, ends: Collection[int], previous: int | None) -> Guide:
        """Return a guide for an answer of which nothing is there yet.

        Parameters
        ----------
        constraint : Constraint
        ends : collection of int
            Tokens that end the answer.
        previous : int or None
            The token before the answer.
        """
        # The first token may begin with a space that is no part of the text.
        key = (constraint, self._tokenizer.adds_space_after(previous))
        return Guide(lambda: self._matcher(key), constraint, self._tokenizer.vocab_size, ends)

    def _matcher(self, key: tuple[Constraint, bool]) -> LLMatcher:
        with self._lock:
            matcher = self._compiled.pop(key, None)
            if matcher is None:
                matcher = self._compile(*key)
            self._compiled[key] = matcher
            if len(self._compiled) > _MOST_COMPILED:
                self._compiled.popitem(last=False)
            return matcher.deep_copy()

    def _compile(self, constraint: Constraint, after_space: bool) -> LLMatcher:
        from llguidance import LLMatcher

        if self._vocabulary is None:
            self._vocabulary = _vocabulary(self._tokenizer)
        grammar = _grammar(constraint)
        if after_space:
            (inner,) = json.loads(grammar)["grammars"]
            outer = {"lark_grammar": 'start: " "? @answer'}
            grammar = json.dumps({"grammars": [outer, {**inner, "name": "answer"}]})
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"{constraint.option}: {_first_line(matcher)}")
        return matcher


def masked(
    logits: npt.NDArray[np.float32], allowed: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Return logits with those at -inf that are not allowed; few are, or nearly all.

    Parameters
    ----------
    logits : float32, (n,)
        Not modified.
    allowed : bool, (n,)

    Returns
    -------
    float32, (n,)
    """
    if 8 * np.count_nonzero(allowed) < logits.size:
        kept = np.flatnonzero(allowed)
        result = np.full_like(logits, -np.inf)
        result[kept] = logits[kept]
    else:
        result = logits.copy()
        result[~allowed] = -np.inf
    return result


def _grammar(constraint: Constraint) -> str:
    """Return a constraint in the library's language."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if constraint.kind == "schema":
        return LLMatcher.grammar_from_json_schema(constraint.text, defaults=ONE_LINE)
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.text)
    lark = constraint.text
    if constraint.kind == "grammar":
        try:
            lark = any_to_lark(_ESCAPE.sub(_character, lark))
        except Exception as error:  # of its own kind, and IndexError where the text ends
            raise ValueError(f"{constraint.option}: {one_line(error)}") from None
    return LLMatcher.grammar_from_lark(lark)


def _character(escape: re.Match[str]) -> str:
    """Return what an escape of GBNF stands for: the library's converter spoils leading zeros."""
    digits = escape[1] or escape[2]
    character = chr(int(digits, 16)) if digits else "\\"
    return character if character.isprintable() and character not in '"\\[]^-' else escape[0]


class _Vocabulary:
    """What `TokenizerWrapper` wants of a tokenizer, with an end token after all others.

    Which tokens end an answer is a matter of each answer; the library has one, and allows
    it where the constraint is met.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.vocab_size
        self.special_token_ids = [
            *filter(tokenizer.is_special, range(tokenizer.vocab_size)),
            self.eos_token_id,
        ]
        self.tokens = [*map(self._bytes, range(tokenizer.vocab_size)), b"end of the answer"]

    def _bytes(self, token: int) -> bytes:
        try:
            if self._tokenizer.is_special(token):
                return self._tokenizer.token_text(token).encode()
            return self._tokenizer.token_bytes(token)
        except TokenizerError:  # a hole in the vocabulary
            return b""

    def __call__(self, text: bytes) -> list[int]:
        """Return the tokens of text that a constraint leaves no choice about."""
        ids = self._encode(text.decode())
        if b"".join(map(self._tokenizer.token_bytes, ids)) == text:
            return ids
        return self._longest(text)

    def _encode(self, text: str) -> list[int]:
        encode = self._tokenizer.encode
        if not self._tokenizer.adds_space_after(None):
            return encode(text, add_special=False, parse_special=False)
        # Behind a byte that no vocabulary joins with others: the text gets no space.
        before = encode(_ALONE, add_special=False, parse_special=False)
        return encode(_ALONE + text, add_special=False, parse_special=False)[len(before) :]

    def _longest(self, text: bytes) -> list[int]:
        """Return the longest tokens from the start on: the tokenizer changes the text."""
        ids = []
        while text:
            n = next((n for n in range(len(text), 0, -1) if text[:n] in self._ids), 0)
            if n == 0:  # no token begins so: the answer cannot go on
                break
            ids.append(self._ids[text[:n]])
            text = text[n:]
        return ids

    @functools.cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {token: i for i, token in enumerate(self.tokens) if token and i not in special}


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)))


def _first_line(matcher: LLMatcher) -> str:
    """Return what went wrong, without the library's picture of where."""
    lines = [line.strip() for line in matcher.get_error().splitlines()]
    wrong = next((line for line in lines if line.startswith("error:")), lines[0])
    return wrong.removeprefix("error: ")
