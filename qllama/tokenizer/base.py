"""What every tokenizer can do, and the rules that hold for all of them.

Owns the `Tokenizer` protocol that the rest of qllama is written against, and
`BaseTokenizer`: when BOS and EOS are added, how ids become text again. Knows
nothing of the library that splits the text; an adapter supplies that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Protocol

from qllama.config import TokenizerConfig
from qllama.errors import TokenizerError
from qllama.tokenizer.detokenizer import StreamingDetokenizer

__all__ = ["BaseTokenizer", "Tokenizer", "one_line"]


class Tokenizer(Protocol):
    """Text to token ids and back. Instances may be shared between threads."""

    @property
    def config(self) -> TokenizerConfig:
        """Special token ids and the chat template."""
        ...

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        ...

    def encode(
        self, text: str, *, add_special: bool, parse_special: bool, add_eos: bool = True
    ) -> list[int]:
        """Return the token ids of `text`; see `BaseTokenizer.encode`."""
        ...

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of `ids`; see `BaseTokenizer.decode`."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes the token adds to the text; see `BaseTokenizer.token_bytes`."""
        ...

    def token_text(self, token_id: int) -> str:
        """Return the token as the vocabulary spells it, `<|im_end|>` or `Ġthe` or `▁the`."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, which no plain text encodes to."""
        ...

    def adds_space_after(self, token_id: int | None) -> bool:
        """Whether encoding puts a space of its own before plain text that follows the token.

        None asks of plain text that begins the text. Tokenizers made by
        SentencePiece add one there and after BOS; some also after every other token
        that is matched as it is spelled.
        """
        ...


class BaseTokenizer(ABC):
    """What the adapters share; they implement the abstract methods.

    Parameters
    ----------
    config : TokenizerConfig
        Its token ids must be below `vocab_size`.
    vocab_size : int
        One more than the highest token id.
    adds_space : bool
        Whether encoding puts a space of its own before a text.
    adds_space_after_matched : bool
        Whether it also puts one before plain text that follows one of `added`.
    added : mapping of int to bool
        The tokens that are matched in a text as they are spelled, and whether
        each is special.

    Raises
    ------
    TokenizerError
        When a token id of `config` is not in the vocabulary, or when it wants a
        BOS or EOS token added but names none.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        *,
        vocab_size: int,
        adds_space: bool,
        adds_space_after_matched: bool,
        added: Mapping[int, bool],
    ) -> None:
        self.config = config
        self.vocab_size = vocab_size
        self._adds_space = adds_space
        self._adds_space_after_matched = adds_space_after_matched
        self._added = added
        self._bytes: dict[int, bytes] = {}
        self._check_config()

    def _check_config(self) -> None:
        config = self.config
        named = {
            "bos_token_id": config.bos_token_id,
            "unk_token_id": config.unk_token_id,
            "pad_token_id": config.pad_token_id,
            **{f"eos_token_ids[{i}]": eos for i, eos in enumerate(config.eos_token_ids)},
        }
        for name, token_id in named.items():
            if token_id is not None and not 0 <= token_id < self.vocab_size:
                raise TokenizerError(
                    f"tokenizer.{name}: expected 0..{self.vocab_size - 1}, found {token_id}"
                )
        if config.add_bos_token and config.bos_token_id is None:
            raise TokenizerError("tokenizer.add_bos_token is set, but no bos_token_id is given")
        if config.add_eos_token and not config.eos_token_ids:
            raise TokenizerError("tokenizer.add_eos_token is set, but no eos_token_ids are given")

    def encode(
        self, text: str, *, add_special: bool, parse_special: bool, add_eos: bool = True
    ) -> list[int]:
        """Return the token ids of `text`.

        Parameters
        ----------
        text : str
            Any text; a chat prompt already rendered by `ChatTemplate` included.
        add_special : bool
            Put BOS in front and EOS behind, each only if the model asks for it
            and the ids do not already begin (end) with it: a template that
            writes BOS itself never leads to two.
        parse_special : bool
            Read `<|im_end|>` and its like in `text` as control tokens. When
            False they are plain text, as text from a user should be. Tokens
            that the vocabulary calls user-defined are matched in both cases.
        add_eos : bool
            False for a text that is to be continued: `add_special` then adds no EOS.

        Raises
        ------
        TokenizerError
            When `text` has a lone surrogate, which no UTF-8 can express.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"text: character {error.start} is the lone surrogate "
                f"{text[error.start]!a}, which UTF-8 cannot express; replace it"
            ) from None
        ids = self._encode_text(text, parse_special)
        if add_special:
            config = self.config
            bos = config.bos_token_id
            if config.add_bos_token and bos is not None and ids[:1] != [bos]:
                ids.insert(0, bos)
            if add_eos and config.add_eos_token and ids[-1:] != [config.eos_token_ids[0]]:
                ids.append(config.eos_token_ids[0])
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of `ids`.

        Equal to what a `StreamingDetokenizer` gives piece by piece. Bytes that
        are not UTF-8 become U+FFFD as in ``bytes.decode(errors="replace")``.

        Parameters
        ----------
        ids : iterable of int
            Token ids below `vocab_size`.
        skip_special : bool
            Leave control tokens out, instead of writing them as they are spelled.

        Raises
        ------
        TokenizerError
            When an id is not in the vocabulary.
        """
        stream = StreamingDetokenizer(self, skip_special=skip_special)
        return "".join([stream.push(token_id) for token_id in ids]) + stream.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes the token adds to the text.

        A control token adds none: ``b""`` (`token_text` tells how it is
        spelled). A space that encoding added (`adds_space_after`) is in here,
        though the decoded text lacks it.

        Raises
        ------
        TokenizerError
            When the id is not in the vocabulary.
        """
        cached = self._bytes.get(token_id)
        if cached is None:
            spelled = self.token_text(token_id)
            special = self._added.get(token_id)
            if special is None:
                cached = self._decode_token(token_id, spelled)
            else:
                cached = b"" if special else spelled.encode()
            self._bytes[token_id] = cached
        return cached

    def token_text(self, token_id: int) -> str:
        """Return the token as the vocabulary spells it, `<|im_end|>` or `Ġthe` or `▁the`.

        Raises
        ------
        TokenizerError
            When the id is not in the vocabulary.
        """
        spelled = self._spelling(token_id) if 0 <= token_id < self.vocab_size else None
        if spelled is None:
            raise TokenizerError(
                f"token id {token_id} is not in the vocabulary (0..{self.vocab_size - 1})"
            )
        return spelled

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, which no plain text encodes to."""
        return self._added.get(token_id, False)

    def adds_space_after(self, token_id: int | None) -> bool:
        """See `Tokenizer.adds_space_after`."""
        if token_id is None or token_id == self.config.bos_token_id:
            return self._adds_space
        return self._adds_space_after_matched and token_id in self._added

    @abstractmethod
    def _encode_text(self, text: str, parse_special: bool) -> list[int]:
        """Return the ids of valid `text`, without BOS and EOS."""

    @abstractmethod
    def _spelling(self, token_id: int) -> str | None:
        """Return the vocabulary's entry; None for a hole in the ids."""

    @abstractmethod
    def _decode_token(self, token_id: int, spelled: str) -> bytes:
        """Return the bytes of a token, not one of `added`, that is spelled `spelled`."""


def one_line(error: BaseException) -> str:
    """Return the message of another library's error as our own are: on one line."""
    return " ".join(str(error).split()) or type(error).__name__
