"""Tokenizers described by a SentencePiece model, run by the `sentencepiece` library.

Owns the mapping of that library to `Tokenizer`, above all control tokens in
text, which SentencePiece itself never matches. The library is imported when a
model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from qllama.config import TokenizerConfig
from qllama.errors import TokenizerError
from qllama.tokenizer.base import BaseTokenizer, one_line
from qllama.tokenizer.sentencepiece_proto import (
    BYTE,
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    read_pieces,
    with_dummy_prefix,
)

__all__ = ["SentencePieceTokenizer"]

_SPACE = "▁"


class SentencePieceTokenizer(BaseTokenizer):
    """A SentencePiece model, with control tokens read from the text on request.

    The text is cut at user-defined tokens, and at control tokens when they are
    to be parsed, the longest first; the pieces between them are SentencePiece's.
    Where the model adds a dummy prefix, each of these pieces gets it, the first
    one and those after a token alike: `<s>[INST]` is `<s>`, `▁[`, `INST`, `]`.
    So do llama.cpp, Meta's own Llama 2 code and the `tokenizer.json` files of
    Llama 2, TinyLlama and Phi-3 (normalizer `Prepend`). With
    `config.prefix_at_start_only` the start of the text alone gets it, as in
    Hugging Face's `LlamaTokenizer(legacy=False)`; the two agree wherever no text
    follows such a token.

    Parameters
    ----------
    config : TokenizerConfig
        Special token ids and the chat template.
    blob : bytes
        A serialized `sentencepiece.ModelProto`.

    Raises
    ------
    TokenizerError
        When the proto is malformed.
    """

    def __init__(self, config: TokenizerConfig, blob: bytes) -> None:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        within = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(blob)
            pieces = read_pieces(blob)
            if config.prefix_at_start_only:
                within.LoadFromSerializedProto(with_dummy_prefix(blob, False))
        except (RuntimeError, ValueError, IndexError) as error:
            raise TokenizerError(
                f"tokenizer: not a SentencePiece model ({one_line(error)}); convert the model again"
            ) from None
        added = {
            i: kind != USER_DEFINED
            for i, (_, kind) in enumerate(pieces)
            if kind in (CONTROL, UNKNOWN, USER_DEFINED)
        }
        super().__init__(
            config,
            vocab_size=len(pieces),
            adds_space=(adds_space := processor.normalize("a").startswith(_SPACE)),
            adds_space_after_matched=adds_space and not config.prefix_at_start_only,
            added=added,
        )
        self._processor = processor
        self._processor_within = within if config.prefix_at_start_only else processor
        self._pieces = pieces
        self._matched = {self._spelling(i): i for i in added}
        self._parse_pattern = _any_of(self._matched)
        self._plain_pattern = _any_of(text for text, i in self._matched.items() if not added[i])

    def _encode_text(self, text: str, parse_special: bool) -> list[int]:
        pattern = self._parse_pattern if parse_special else self._plain_pattern
        ids: list[int] = []
        # The pattern's group makes split() alternate text and matched tokens.
        for i, part in enumerate(pattern.split(text)):
            if i % 2:
                ids.append(self._matched[part])
            elif part:
                ids += (self._processor_within if i else self._processor).encode(part)
        return ids

    def _spelling(self, token_id: int) -> str:
        piece, _ = self._pieces[token_id]
        # Only matched tokens are compared with text, where a space is a space.
        return piece.replace(_SPACE, " ") if token_id in self._added else piece

    def _decode_token(self, token_id: int, spelled: str) -> bytes:
        _, kind = self._pieces[token_id]
        return (
            bytes.fromhex(spelled[3:5]) if kind == BYTE else spelled.replace(_SPACE, " ").encode()
        )


def _any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern whose only group is the longest of `spellings`; none never matches."""
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
