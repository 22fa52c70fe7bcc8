"""Finds stop strings in streamed text and never lets one out.

Knows text only: which tokens end an answer is the loop's business.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopMatcher", "overlap"]


class StopMatcher:
    """Passes text on as soon as it certainly belongs to no stop string.

    The answer ends at the first character that completes a stop string, and the
    text before that string is all of the answer. If that character completes
    several, the longest counts. So the result is the same however the text is
    split into pieces.

    Parameters
    ----------
    stops : sequence of str
        None of them empty; no stops pass everything on at once.

    Raises
    ------
    ValueError
        When a stop is empty or no string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise ValueError(f"stop: expected non-empty strings, found {stop!r}")
        self._stops = tuple(stops)
        self._withheld = ""
        self._found = False

    @property
    def found(self) -> bool:
        """Whether a stop string has been completed; nothing may be pushed after it."""
        return self._found

    def push(self, text: str) -> str:
        """Take the next piece and return what is now certain to be answer.

        Parameters
        ----------
        text : str
            Continues what was pushed before; may be empty.

        Returns
        -------
        str
            After a stop string has been found, the text before it.
        """
        assert not self._found
        text = self._withheld + text
        matches = [(start + len(s), start) for s in self._stops if (start := text.find(s)) >= 0]
        if matches:
            self._found = True
            self._withheld = ""
            return text[: min(matches)[1]]
        n_certain = len(text) - max((overlap(text, s) for s in self._stops), default=0)
        self._withheld = text[n_certain:]
        return text[:n_certain]

    def flush(self) -> str:
        """Return what is still withheld: the answer ended otherwise, so it belongs to it."""
        text, self._withheld = self._withheld, ""
        return text


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that could begin `stop`.

    Parameters
    ----------
    text : str
        Without `stop`.
    stop : str
        Not empty.
    """
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
