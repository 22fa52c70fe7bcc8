"""The tiktoken vocabulary of Llama 3 (`tokenizer.model`: base64 and rank, line by line).

Owns its translation to a `tokenizer.json`, and Meta's names of the special tokens, which
are in no file.

References: `llama/tokenizer.py` of meta-llama/llama3 (Llama 3), `models/llama3/tokenizer.py`
of meta-llama/llama-models (from 3.1 on); `CoreBPE` of openai/tiktoken for what ranks mean.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.byte_level_bpe import AddedToken, byte_level_bpe
from converter.pretokenizers import pre_tokenizer
from converter.small_files import read_small
from converter.tokenizer_settings import TokenizerSettings
from converter.vocabularies.base import Vocabulary
from converter.wording import quoted
from qllama.errors import TokenizerError
from qllama.tokenizer.bytelevel import CHARACTER_OF_BYTE

__all__ = ["is_tiktoken", "read_tiktoken"]

_N_SPECIAL = 256
_BEGIN, _END = "<|begin_of_text|>", "<|end_of_text|>"
_LLAMA_3 = (
    _BEGIN,
    _END,
    *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
)
_LLAMA_3_1 = (
    _BEGIN,
    _END,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(2, 247)),
)
_LINE = re.compile(rb"([A-Za-z0-9+/]+=*) (\d{1,9})\r?")


def is_tiktoken(beginning: bytes) -> bool:
    """Whether a file that begins so is a tiktoken vocabulary.

    Parameters
    ----------
    beginning : bytes
        At least its first line.
    """
    return _LINE.fullmatch(beginning.split(b"\n", 1)[0]) is not None


def read_tiktoken(
    path: Path, settings: TokenizerSettings, vocab_size: int, declared: Mapping[str, Any]
) -> Vocabulary:
    """Return the vocabulary of Llama 3, 3.1, 3.2 or 3.3.

    Parameters
    ----------
    path : Path
        The file.
    settings : TokenizerSettings
        What the files beside it say; tokens that they name go before Meta's names.
    vocab_size : int
        Rows of the model's embedding.
    declared : mapping
        The model's config: rotary frequencies that are scaled tell 3.1 from 3.

    Raises
    ------
    TokenizerError
        When a line is damaged, or the vocabulary is not one of Llama 3.
    """
    ranks = _read_ranks(path)
    if len(ranks) + _N_SPECIAL != vocab_size:
        raise TokenizerError(
            f"{path}: expected the tiktoken vocabulary of Llama 3 with {vocab_size - _N_SPECIAL} "
            f"ranks and {_N_SPECIAL} special tokens for the model's {vocab_size} rows, found "
            f"{len(ranks)} ranks; pass the checkpoint's tokenizer.json with --tokenizer"
        )
    names = _LLAMA_3_1 if _has_scaled_rope(declared) else _LLAMA_3
    special = {i: AddedToken(i, text) for i, text in enumerate(names, start=len(ranks))}
    special |= {token.id: token for token in settings.added if token.id in special}
    tokens = [_spelled(token) for token in ranks]
    tokens += [token.content for token in special.values()]
    if len(set(tokens)) != len(tokens):
        raise TokenizerError(f"{path.parent}: two added tokens are spelled alike")
    return Vocabulary(
        kind="tokenizers",
        blob=byte_level_bpe(
            tokens, _merges(ranks), list(special.values()), pre_tokenizer("llama3")
        ),
        ids={text: i for i, text in enumerate(tokens)},
        special={token.content: i for i, token in special.items() if token.special},
        bos_id=len(ranks) + names.index(_BEGIN),
        eos_id=len(ranks) + names.index(_END),
        add_bos=True,
    )


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Return the file's tokens, in the order of their ranks, which are 0, 1, 2, ..."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_small(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        try:
            token = base64.b64decode(match[1], validate=True) if match else b""
        except binascii.Error:
            token = b""
        if match is None or not token:
            raise TokenizerError(
                f"{path}, line {number}: expected base64 and a rank, found {quoted(line)}; "
                "download the file again"
            )
        if int(match[2]) != len(ranks) or token in ranks:
            raise TokenizerError(
                f"{path}, line {number}: expected a new token of rank {len(ranks)}, found "
                f"{quoted(token)} of rank {int(match[2])}; download the file again"
            )
        ranks[token] = len(ranks)
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(
            f"{path}: expected every byte to be a token, but {missing[0]:#04x} is not"
        )
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """Return pairs in the order in which tiktoken merges them.

    It merges any two neighbours that make a token together, the lowest rank of that
    token first; so every split of a token into two tokens is a pair.
    """
    merges = []
    for token in ranks:
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += [(_spelled(left), _spelled(right)) for left, right in pairs]
    return merges


def _spelled(token: bytes) -> str:
    return "".join(CHARACTER_OF_BYTE[byte] for byte in token)


def _has_scaled_rope(declared: Mapping[str, Any]) -> bool:
    """Whether the config is of Llama 3.1 or later."""
    scaling = declared.get("rope_scaling") or declared.get("rope_parameters")
    return isinstance(scaling, dict) and "llama3" in (
        scaling.get("rope_type"),
        scaling.get("type"),
    )
