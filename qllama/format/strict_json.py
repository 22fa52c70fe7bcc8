"""JSON without the latitude that Python's parser grants (`docs/format.md` §2).

Owns what a header's text may hold, whatever it means: no repeated keys, finite
numbers, integers of 64 bits, real Unicode, bounded nesting. Knows no field.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn

__all__ = ["MAX_DEPTH", "dump", "load"]

MAX_DEPTH = 32


def dump(value: Any) -> bytes:
    """Encode as compact UTF-8 JSON, keys in their order.

    Raises
    ------
    ValueError
        When `value` is not JSON, or holds NaN or an infinity.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return text.encode()


def load(data: bytes) -> Any:
    """Decode UTF-8 JSON.

    Raises
    ------
    ValueError
        When `data` is not JSON or breaks a rule of this module.
    """
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from None
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"key {counts.most_common(1)[0][0][:80]!r} is repeated")
    return found


def _integer(text: str) -> int:
    # Before int(): converting millions of digits takes hours on old Pythons.
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"integer {text[:24]} does not fit 64 bits")
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"number {text[:24]} is not finite")
    return number


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _check(value: Any) -> None:
    """Refuse deep nesting and lone surrogates; iterative, so that depth cannot hurt it."""
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str):
            _check_text(item)
        elif isinstance(item, (dict, list)):
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
            if isinstance(item, dict):
                pending.extend((key, depth) for key in item)
                item = item.values()
            pending.extend((child, depth + 1) for child in item)


def _check_text(text: str) -> None:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"string {text[:80]!r} holds a lone surrogate")
