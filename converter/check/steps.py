"""Foreign code that must come to an end.

Owns the count of its steps. Steps are counted, not seconds, so that the outcome is the same
on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

__all__ = ["TooManySteps", "run_limited"]

_Result = TypeVar("_Result")


class TooManySteps(Exception):
    """What a call raises inside itself once its steps are used up."""


def run_limited(call: Callable[[], _Result], n_steps: int) -> _Result:
    """Call, with so many lines of Python to run at most.

    Parameters
    ----------
    call : callable
    n_steps : int
        Lines and calls. What a built-in function does counts for nothing.

    Raises
    ------
    TooManySteps
        When they are used up. `call` may make another exception of it.
    """
    left = n_steps

    def count(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise TooManySteps(f"it takes more than {n_steps:,} steps")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        return call()
    finally:
        sys.settrace(before)
