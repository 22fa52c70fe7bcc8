"""Byte-level BPE vocabularies as a `tokenizer.json`.

Owns the document's form, and added tokens as it has them. Knows nothing of where a
vocabulary comes from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from converter.pretokenizers import PreTokenizer

__all__ = ["AddedToken", "byte_level_bpe", "to_json"]


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text as it is spelled, before anything else is.

    The fields are those of an entry of `added_tokens` in a `tokenizer.json`.

    Parameters
    ----------
    id : int
        Its token id.
    content : str
        How it is spelled.
    single_word : bool
        Not matched within a word.
    lstrip, rstrip : bool
        Takes the white space before (after) it along.
    normalized : bool
        Matched in the normalized text.
    special : bool
        A control token: matched only where control tokens are asked for.
    """

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


def byte_level_bpe(
    tokens: Sequence[str],
    merges: Sequence[Any],
    added: Sequence[AddedToken],
    pre: PreTokenizer,
) -> bytes:
    """Return the `tokenizer.json` of a byte-level BPE vocabulary.

    Parameters
    ----------
    tokens : sequence of str
        The vocabulary in the order of its ids, spelled in the byte alphabet.
    merges : sequence
        Pairs as the `tokenizers` library takes them, `"a b"` or `["a", "b"]`, the first
        to merge first.
    added : sequence of AddedToken
        Tokens of the vocabulary that are matched as they are spelled.
    pre : PreTokenizer
        How text is cut before merging.
    """
    return to_json(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [asdict(token) for token in added],
            "normalizer": pre.normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre.steps)},
            "post_processor": None,
            "decoder": pre.steps[-1],
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": pre.ignore_merges,
                # Added tokens are here too: the library numbers those that are not anew.
                "vocab": {token: i for i, token in enumerate(tokens)},
                "merges": merges,
            },
        }
    )


def to_json(document: dict[str, Any]) -> bytes:
    """Return a `tokenizer.json` in as few bytes as JSON needs."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
