"""Breaks streamed text between words, where the right edge would tear them."""

from __future__ import annotations

from prompt_toolkit.utils import get_cwidth

__all__ = ["WordWrap"]


class WordWrap:
    """Passes text on word by word; a word that does not fit begins a new line.

    A word is held back until its end is known. Characters that take two cells (Chinese,
    Japanese, Korean) may stand on either side of a break; a word longer than a line is
    torn, since nothing else can be done with it.

    Parameters
    ----------
    width : int
        Cells of a line; may be changed between two calls.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._column = 0
        self._spaces = ""
        self._word = ""
        self._word_width = 0

    def push(self, text: str) -> str:
        """Take the next part of the text and return what can be shown."""
        shown = []
        for character in text:
            if character == "\n":
                shown += [self.flush(), "\n"]
                self._column, self._spaces = 0, ""
            elif character in " \t":
                shown.append(self.flush())
                self._spaces += character if character == " " else "    "
            else:
                cells = get_cwidth(character)
                if cells == 2 or self._word_width + cells > self.width:
                    shown.append(self.flush())
                self._word += character
                self._word_width += cells
                if cells == 2:
                    shown.append(self.flush())
        return "".join(shown)

    def flush(self) -> str:
        """Return the word that is held back."""
        if not self._word:
            return ""
        if self._column + len(self._spaces) + self._word_width > self.width and self._column:
            shown, self._column = "\n" + self._word, self._word_width
        else:
            shown = self._spaces + self._word
            self._column += len(self._spaces) + self._word_width
        self._spaces, self._word, self._word_width = "", "", 0
        return shown
