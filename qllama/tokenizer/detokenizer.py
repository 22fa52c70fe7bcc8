"""Token ids to text, one at a time, never half a character.

Owns the state that a stream needs between two tokens. Knows neither the
tokenizer's library nor where the ids come from.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection
from typing import Protocol

__all__ = ["StreamingDetokenizer"]

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class _TokenBytes(Protocol):
    """The part of `Tokenizer` that a detokenizer needs."""

    def token_bytes(self, token_id: int) -> bytes: ...

    def token_text(self, token_id: int) -> str: ...

    def is_special(self, token_id: int) -> bool: ...

    def adds_space_after(self, token_id: int | None) -> bool: ...


class StreamingDetokenizer:
    """Turns token ids into text as they come.

    All pushes and the flush together are exactly ``tokenizer.decode(ids)`` with
    the same `skip_special`. A character that tokens share is held back until it
    is whole; bytes that cannot become one give U+FFFD, at the latest with the
    byte after them. At most three bytes are ever held back.

    The space that encoding adds before plain text (`Tokenizer.adds_space_after`)
    is dropped in the same places, and only there.

    Parameters
    ----------
    tokenizer : Tokenizer
        Whose ids are pushed.
    skip_special : bool
        Leave control tokens out, instead of writing them as they are spelled.
    spelled : collection of int
        Control tokens that are written all the same.
    previous : int or None
        The token before the first push, when the ids continue a text (an answer
        continues its prompt): a leading space then belongs to the text, unless
        encoding adds one after that token. None: the ids begin a text.

    Examples
    --------
    >>> stream = StreamingDetokenizer(tokenizer, skip_special=True)  # doctest: +SKIP
    >>> text = "".join(stream.push(i) for i in ids) + stream.flush()  # doctest: +SKIP
    """

    def __init__(
        self,
        tokenizer: _TokenBytes,
        *,
        skip_special: bool = False,
        spelled: Collection[int] = (),
        previous: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._spelled = spelled
        self._skip_special = skip_special
        self._utf8 = _new_utf8_decoder(errors="replace")
        self._drop_space = tokenizer.adds_space_after(previous)

    def push(self, token_id: int) -> str:
        """Return the text that is certain now; often "", when a character is not whole.

        Raises
        ------
        TokenizerError
            When the id is not in the vocabulary.
        """
        tokenizer = self._tokenizer
        if not tokenizer.is_special(token_id):
            piece = tokenizer.token_bytes(token_id)
        else:
            is_left_out = self._skip_special and token_id not in self._spelled
            piece = b"" if is_left_out else tokenizer.token_text(token_id).encode()
        is_matched = tokenizer.adds_space_after(token_id)
        if self._drop_space and not is_matched:
            piece = piece.removeprefix(b" ")
        self._drop_space = is_matched
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """Return what was held back (U+FFFD for an unfinished character), and start afresh."""
        rest = self._utf8.decode(b"", final=True)
        self._drop_space = self._tokenizer.adds_space_after(None)
        return rest
