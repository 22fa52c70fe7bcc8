"""How a session words its lists, its guesses and its quotes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["QUOTES", "counted", "is_open", "shortened", "table", "unknown", "unquoted"]

QUOTES = '"""'
"""Begins and ends a text of several lines."""


def counted(n: int, noun: str) -> str:
    """Return `n` and a `noun` whose plural ends in s."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def shortened(text: str) -> str:
    """Return the beginning of `text`, where all of it is more than a line."""
    line = text.partition("\n")[0][:60]
    return text if line == text else f"{line}…"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return `rows`, each a usage and what it does, indented and aligned."""
    width = max(len(usage) for usage, _ in rows)
    return "\n".join(f"  {usage:<{width}}  {text}".rstrip() for usage, text in rows)


def unknown(name: str, known: Iterable[str], before: str = "") -> str:
    """Return the line that tells of an unknown command and guesses which was meant.

    Parameters
    ----------
    name : str
        What was typed.
    known : iterable of str
        What could have been.
    before : str
        The command that it is a part of, as `/set `.
    """
    # Without the slash, which all of them share.
    words = {word.lstrip("/"): word for word in known}
    nearest = difflib.get_close_matches(name.lstrip("/"), words, n=1)
    guess = f" Did you mean {before}{words[nearest[0]]}?" if nearest else ""
    return f"Unknown command '{before}{name}'.{guess} Type /? for help"


def is_open(text: str) -> bool:
    """Whether `text` opens triple quotes, at its start or as `/set system`'s, and no more."""
    text = text.removeprefix("/set system").lstrip()
    return text.startswith(QUOTES) and not (
        text.rstrip().endswith(QUOTES) and len(text.strip()) >= 2 * len(QUOTES)
    )


def unquoted(text: str) -> str:
    """Return what stands between the triple quotes of `text`; without any, all of it."""
    text = text.strip()
    if not text.startswith(QUOTES):
        return text
    return text.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
