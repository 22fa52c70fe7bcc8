"""Byte-level BPE in plain Python, without the libraries and regexes under test.

An oracle: slow, and written from the papers' descriptions. Pre-tokenizers are
scanners over Unicode categories, not patterns.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator

from qllama.tokenizer.bytelevel import CHARACTER_OF_BYTE

# Unicode's White_Space; Python's str.isspace also takes U+001C..U+001F.
WHITE_SPACE = frozenset(
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u2028\u2029\u202f\u205f\u3000"
)
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def _kind(character: str) -> str:
    if character in WHITE_SPACE:
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "other")


def gpt2_pieces(text: str) -> Iterator[str]:
    """GPT-2's cut: contractions, runs of letters, of numbers, of the rest, of spaces.

    A run takes one space before it; a run of white space leaves its last
    character to what follows.
    """
    at = 0
    while at < len(text):
        contraction = next((c for c in CONTRACTIONS if text.startswith(c, at)), None)
        if contraction:
            yield contraction
            at += len(contraction)
            continue
        start = at + 1 if text[at] == " " and at + 1 < len(text) else at
        kind = _kind(text[start])
        if kind == "space":
            end = at
            while end < len(text) and _kind(text[end]) == "space":
                end += 1
            if end < len(text) and end - at > 1:
                end -= 1
        else:
            end = start
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        yield text[at:end]
        at = end


def smollm_pieces(text: str) -> Iterator[str]:
    """SmolLM's cut: every number character alone, GPT-2's cut of what lies between."""
    between = ""
    for character in text:
        if _kind(character) == "number":
            yield from gpt2_pieces(between)
            yield character
            between = ""
        else:
            between += character
    yield from gpt2_pieces(between)


def merge(piece: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merge the pair of the lowest rank, leftmost first, until none is left (Sennrich 2016)."""
    parts = [CHARACTER_OF_BYTE[byte] for byte in piece.encode()]
    while True:
        pairs = list(itertools.pairwise(parts))
        known = [(ranks[pair], i) for i, pair in enumerate(pairs) if pair in ranks]
        if not known:
            return parts
        _, i = min(known)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
