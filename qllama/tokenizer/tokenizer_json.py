"""Tokenizers described by a `tokenizer.json`, run by the `tokenizers` library.

Owns the mapping of that library to `Tokenizer`. Knows nothing of where the
`tokenizer.json` came from. The library is imported when one is loaded.
"""

from __future__ import annotations

import re
import threading
from functools import partial
from typing import TYPE_CHECKING

from qllama.config import TokenizerConfig
from qllama.errors import TokenizerError
from qllama.tokenizer.base import BaseTokenizer
from qllama.tokenizer.bytelevel import BYTE_OF_CHARACTER
from qllama.tokenizer.foreign import failures_told

if TYPE_CHECKING:
    import tokenizers

__all__ = ["JsonTokenizer"]

_failures_told = partial(failures_told, "tokenizer.json", "convert the model again")

_SPACE = "▁"
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class JsonTokenizer(BaseTokenizer):
    """A `tokenizer.json`: byte-level BPE, or BPE over `▁` with byte fallback.

    Which of the two it is shows in the decoder that the file itself names.

    Parameters
    ----------
    config : TokenizerConfig
        Special token ids and the chat template. BOS and EOS are added as it
        says; a post-processor in the file is not run, nor its truncation or padding.
    blob : bytes
        The file, UTF-8.

    Raises
    ------
    TokenizerError
        When the file is malformed, or its decoder is of neither kind.
    """

    def __init__(self, config: TokenizerConfig, blob: bytes) -> None:
        import tokenizers

        with _failures_told():
            backend = tokenizers.Tokenizer.from_buffer(blob)
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        matched = next((token.content for token in added.values() if token.special), None)
        super().__init__(
            config,
            vocab_size=max([backend.get_vocab_size(), *(token_id + 1 for token_id in added)]),
            adds_space=_adds_space(backend, "a", 0),
            adds_space_after_matched=matched is not None and _adds_space(backend, f"{matched}a", 1),
            added={token_id: token.special for token_id, token in added.items()},
        )
        self._backend = backend
        self._lock = threading.Lock()
        self._is_byte_level = _decode(backend, "Ġa") == " a"
        if not self._is_byte_level and _decode(backend, "a", f"{_SPACE}b") != "a b":
            raise TokenizerError(
                "tokenizer.json: expected a decoder of kind ByteLevel or Replace('▁', ' '), "
                f"found {backend.decoder}; this tokenizer is not supported"
            )

    def _encode_text(self, text: str, parse_special: bool) -> list[int]:
        # The switch is state of the backend, so switching and encoding are one step.
        with self._lock:
            self._backend.encode_special_tokens = not parse_special
            with _failures_told():
                return self._backend.encode(text, add_special_tokens=False).ids

    def _spelling(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id)

    def _decode_token(self, token_id: int, spelled: str) -> bytes:
        if self._is_byte_level:
            try:
                return bytes([BYTE_OF_CHARACTER[character] for character in spelled])
            except KeyError:
                # Filler entries (`[PAD151646]`) may be spelled in plain text.
                return spelled.encode()
        byte = _BYTE_TOKEN.fullmatch(spelled)
        if byte:
            return bytes.fromhex(byte[1])
        return spelled.replace(_SPACE, " ").encode()


def _adds_space(backend: tokenizers.Tokenizer, text: str, position: int) -> bool:
    """Whether the token at `position` of `text`, which has no space, begins with one."""
    with _failures_told():
        spelled = backend.encode(text, add_special_tokens=False).tokens
    return len(spelled) > position and spelled[position].startswith((_SPACE, "Ġ"))


def _decode(backend: tokenizers.Tokenizer, *tokens: str) -> str:
    """Return what the backend's decoder makes of vocabulary entries."""
    with _failures_told():
        return backend.decoder.decode(list(tokens)) if backend.decoder else ""
