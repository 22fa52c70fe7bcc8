"""Values of a configuration, with their types checked on the way out.

Owns the wording of what is missing, mistyped or refused, and the rule that every field is
used, known to change nothing, or refused. Knows no field's meaning.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from converter.wording import quoted, shown
from qllama.errors import ConversionError, UnsupportedModelError

__all__ = ["OFF", "UNKNOWN", "Fields", "Refused"]

OFF: tuple[Any, ...] = (False, 0, "", [], {})
"""Values that switch nothing on."""

UNKNOWN = (
    "qllama does not know this key and might run the model wrongly; if it changes no result, "
    "convert with --config and a copy of the file without it"
)
"""What is wrong with a key of a file that the user can replace."""

Refused = Mapping[str, tuple[Sequence[Any], str]]
"""Field to the values that change nothing, and what is wrong with any other."""


class Fields:
    """An object of a configuration file; null is the same as absent.

    Parameters
    ----------
    where : Path
        The file, for messages.
    values : mapping
        Name to value.
    prefix : str
        What messages put before a name, for an object inside another: `rope_scaling.`.
    """

    def __init__(self, where: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.where = where
        self.values = {key: value for key, value in values.items() if value is not None}
        self._nulls = values.keys() - self.values.keys()
        self.prefix = prefix

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def is_null(self, key: str) -> bool:
        """Whether `key` is there and null: for the few defaults that null switches off."""
        return key in self._nulls

    def integer(self, key: str, default: int | None = None) -> int:
        """Return the integer `key`; without a `default`, it must be there."""
        value = self._get(key, default)
        if type(value) is not int:
            self.mistyped(key, "an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return the finite number `key`; without a `default`, it must be there."""
        value = self._get(key, default)
        # JSON has integers that no float can hold.
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            self.mistyped(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return the boolean `key`, or `default`."""
        value = self._get(key, default)
        if type(value) is not bool:
            self.mistyped(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return the string `key`; without a `default`, it must be there."""
        value = self._get(key, default)
        if not isinstance(value, str):
            self.mistyped(key, "a string")
        return value

    def inner(self, key: str) -> Fields:
        """Return the object `key`; empty where it is absent."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.mistyped(key, "an object")
        return Fields(self.where, value, f"{self.prefix}{key}.")

    def check_known(
        self,
        passed: Collection[str],
        refused: Refused,
        unknown: str = UNKNOWN,
        neutral: Sequence[Any] = OFF,
    ) -> None:
        """Refuse the first field whose value might change what the model computes.

        Parameters
        ----------
        passed : collection of str
            Fields that are used, or change nothing.
        refused : mapping
            Fields that qllama knows, and does not compute with.
        unknown : str
            What is wrong with all others.
        neutral : sequence
            Values that these may have all the same.

        Raises
        ------
        UnsupportedModelError
            Names the field and its value.
        """
        for key, value in self.values.items():
            harmless, why = refused.get(key, (neutral, unknown))
            if key not in passed and value not in harmless:
                self.refuse(key, why)

    def refuse(self, key: str, why: str) -> NoReturn:
        """Raise UnsupportedModelError: the value of `key` asks for what `why` says."""
        raise UnsupportedModelError(
            f"{self.where}: {self.prefix}{shown(key)} = {quoted(self.values.get(key))}: {why}"
        )

    def mistyped(self, key: str, expected: str) -> NoReturn:
        """Raise ConversionError: the value of `key` is not what is `expected`."""
        raise ConversionError(
            f"{self.where}: {self.prefix}{shown(key)}: expected {expected}, "
            f"found {quoted(self.values.get(key))}"
        )

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise ConversionError(f"{self.where}: {self.prefix}{shown(key)} is missing")
        return value
