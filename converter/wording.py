"""How messages show what a checkpoint says: cut to length, on one line, without control codes."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

__all__ = ["listed", "quoted", "shown"]

_MAX_LENGTH = 80
_MAX_LISTED = 5
# Builds no more than it shows: a YAML of 500 bytes can stand for a list of gigabytes.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _MAX_LENGTH // 4
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 4 * _MAX_LENGTH


def quoted(value: object) -> str:
    """Return `repr(value)`, cut: damaged files have names of thousands of characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."


def shown(name: str) -> str:
    """Return a name as it is, or quoted where it is long or would disturb a terminal."""
    return name if name.isprintable() and len(name) <= _MAX_LENGTH else quoted(name)


def listed(names: Iterable[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    all_names = [shown(name) for name in names]
    first = ", ".join(all_names[:_MAX_LISTED])
    more = len(all_names) - _MAX_LISTED
    return first if more <= 0 else f"{first} and {more} more"
