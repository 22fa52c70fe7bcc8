"""Calls into the `tokenizers` library, whatever it makes of what it is given.

Owns what its failures become.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qllama.errors import TokenizerError
from qllama.tokenizer.base import one_line

__all__ = ["failures_told"]


@contextmanager
def failures_told(what: str, advice: str) -> Iterator[None]:
    """Turn the library's failures into errors of one line.

    Parameters
    ----------
    what : str
        The file, and what was asked of the library; begins the message.
    advice : str
        Ends it.

    Raises
    ------
    TokenizerError
        For whatever the library raises: bare Exceptions, and where its Rust code panics over
        a damaged file, an exception that no `except Exception` catches.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: {one_line(error)}; {advice}") from None
