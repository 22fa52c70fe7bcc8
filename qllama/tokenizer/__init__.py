"""Text to token ids, token ids to text, and chats to prompts.

`load_tokenizer` gives the tokenizer of a model, `StreamingDetokenizer` turns ids
into text as they are generated, `ChatTemplate` renders messages to a prompt.
None of the libraries behind them is imported before it is needed.
"""

from __future__ import annotations

from qllama.config import TokenizerConfig
from qllama.tokenizer.base import Tokenizer
from qllama.tokenizer.chat import ChatTemplate
from qllama.tokenizer.detokenizer import StreamingDetokenizer

__all__ = ["ChatTemplate", "StreamingDetokenizer", "Tokenizer", "load_tokenizer"]


def load_tokenizer(config: TokenizerConfig, blob: bytes) -> Tokenizer:
    """Return the tokenizer that `blob` describes.

    Parameters
    ----------
    config : TokenizerConfig
        `config.kind` says what `blob` is.
    blob : bytes
        A `tokenizer.json` or a serialized SentencePiece model.

    Raises
    ------
    TokenizerError
        When the blob is malformed, or `config` names token ids outside of it.
    """
    if config.kind == "sentencepiece":
        from qllama.tokenizer.sentencepiece_model import SentencePieceTokenizer

        return SentencePieceTokenizer(config, blob)
    from qllama.tokenizer.tokenizer_json import JsonTokenizer

    return JsonTokenizer(config, blob)
