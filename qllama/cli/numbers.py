"""Whole numbers separated by commas, as options of benchmarks take them."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["Numbers"]


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Whole numbers separated by commas, as a tuple.

    Parameters
    ----------
    least : int
        Smaller ones are refused.
    count : int, optional
        How many there must be. Without it, repeats are left out.
    """

    name = "N,..."

    def __init__(self, least: int, count: int | None = None) -> None:
        self._least = least
        self._count = count

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse the string `value`, of `param` in `ctx`; a tuple is taken as it is."""
        if isinstance(value, tuple):
            return value
        words = value.split(",")
        numbers = tuple(int(word) for word in words if word.strip().isdecimal())
        good = len(numbers) == len(words) and all(n >= self._least for n in numbers)
        if not good or self._count not in (None, len(numbers)):
            what = "whole numbers" if self._count is None else f"{self._count} whole numbers"
            self.fail(
                f"expected {what} of at least {self._least}, separated by commas, found {value!r}",
                param,
                ctx,
            )
        return numbers if self._count else tuple(dict.fromkeys(numbers))
