"""Tokenizers described by a SentencePiece model, run by the `sentencepiece` library.

Owns the mapping of that library to `Tokenizer`, above all control tokens in
text, which SentencePiece itself never matches. The library is imported when a
model is loaded.
"""

from __future__ import annotations

import re

from qllama.config import TokenizerConfig
from qllama.errors import TokenizerError
from qllama.tokenizer.base import BaseTokenizer

__all__ = ["SentencePieceTokenizer"]

_SPACE = "▁"


class SentencePieceTokenizer(BaseTokenizer):
    """A SentencePiece model, with control tokens read from the text on request.

    Where the model adds a dummy prefix, each piece of text between control
    tokens gets it, the first one and those after a control token alike:
    `<s>[INST]` is `<s>`, `▁[`, `INST`, `]`. So do llama.cpp, Meta's own Llama 2
    code and the `tokenizer.json` files of Llama 2, TinyLlama and Phi-3
    (normalizer `Prepend`). Hugging Face's `LlamaTokenizer(legacy=False)` has the
    prefix at the start of the text only; the two agree wherever no text follows
    a control token. User-defined pieces are SentencePiece's own matter: always
    matched, no prefix after them.

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
        try:
            processor.LoadFromSerializedProto(blob)
        except RuntimeError as error:
            raise TokenizerError(
                f"tokenizer: not a SentencePiece model ({error}); convert the model again"
            ) from None
        size = processor.get_piece_size()
        super().__init__(
            config,
            vocab_size=size,
            adds_space_prefix=processor.normalize("a").startswith(_SPACE),
        )
        self._processor = processor
        self._special = {
            processor.id_to_piece(i): i
            for i in range(size)
            if processor.is_control(i) or processor.is_unknown(i)
        }
        self._special_ids = frozenset(self._special.values())
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def is_special(self, token_id: int) -> bool:
        """Whether the piece is of type control or unknown."""
        return token_id in self._special_ids

    def _encode_text(self, text: str, parse_special: bool) -> list[int]:
        # The pattern's group makes split() alternate plain text and control tokens.
        parts = self._special_pattern.split(text) if parse_special else [text]
        ids: list[int] = []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self._special[part])
            elif part:
                ids += self._processor.encode(part)
        return ids

    def _spelling(self, token_id: int) -> str | None:
        return self._processor.id_to_piece(token_id)

    def _decode_token(self, token_id: int, spelled: str) -> bytes:
        if self._processor.is_byte(token_id):
            return bytes.fromhex(spelled[3:5])
        return spelled.replace(_SPACE, " ").encode()
