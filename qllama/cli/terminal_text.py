"""Text for a terminal: nothing in it steers the terminal, and no word is torn at its edge."""

from __future__ import annotations

import shutil

from rich.cells import get_character_cell_size

__all__ = ["WordWrap", "harmless", "wrapped"]

# Control characters become their pictures.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


def harmless(text: str) -> str:
    """Return `text` without what would move a terminal's cursor or change its colours."""
    return text.translate(_PICTURES)


def wrapped(text: str, width: int | None = None) -> str:
    """Return `text` with its lines broken between words; a list's rows go on indented.

    Parameters
    ----------
    text : str
    width : int, optional
        Cells of a line; default the terminal's.
    """
    lines = []
    for line in text.split("\n"):
        indentation = len(line) - len(line.lstrip())
        wrap = WordWrap(width, indentation + 2 if indentation else 0)
        lines.append(wrap.push(line) + wrap.flush())
    return "\n".join(lines)


class WordWrap:
    """Passes harmless text on word by word; a word that does not fit begins a new line.

    A word is held back until its end is known. Characters that take two cells (Chinese,
    Japanese, Korean) may stand on either side of a break; a word longer than a line is
    torn, since nothing else can be done with it.

    Parameters
    ----------
    width : int, optional
        Cells of a line; default the terminal's, whatever it is at the moment.
    indentation : int
        Spaces before what is put on a new line.
    """

    def __init__(self, width: int | None = None, indentation: int = 0) -> None:
        self._width = width
        self._indentation = indentation
        self._column = 0
        self._spaces = ""
        self._word = ""
        self._word_width = 0

    @property
    def width(self) -> int:
        """Cells of a line."""
        return shutil.get_terminal_size().columns if self._width is None else self._width

    def push(self, text: str) -> str:
        """Take the next part of the text and return what can be shown."""
        shown = []
        width = self.width
        for character in harmless(text):
            if character == "\n":
                shown += [self.flush(), "\n"]
                self._column, self._spaces = 0, ""
            elif character in " \t":
                shown.append(self.flush())
                self._spaces += character if character == " " else "    "
            else:
                cells = get_character_cell_size(character)
                if cells == 2 or self._word_width + cells > width:
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
        end = self._column + len(self._spaces) + self._word_width
        if end > self.width and self._column:
            shown = "\n" + " " * self._indentation + self._word
            self._column = self._indentation + self._word_width
        else:
            shown = self._spaces + self._word
            self._column = end
        self._spaces, self._word, self._word_width = "", "", 0
        return shown
