"""How messages show what a checkpoint says: cut to length, on one line, without control codes."""

from __future__ import annotations

__all__ = ["quoted", "shown"]

_MAX_LENGTH = 80


def quoted(value: object) -> str:
    """Return `repr(value)`, cut: damaged files have names of thousands of characters."""
    text = repr(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."


def shown(name: str) -> str:
    """Return a name as it is, or quoted where it is long or would disturb a terminal."""
    return name if name.isprintable() and len(name) <= _MAX_LENGTH else quoted(name)
