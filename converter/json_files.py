"""JSON files of checkpoint directories, read with messages that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from converter.small_files import read_small
from converter.wording import quoted
from qllama.errors import ConversionError

__all__ = ["read_json_object"]


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Parameters
    ----------
    path : Path
        The file, UTF-8.

    Raises
    ------
    ConversionError
        When it cannot be read, is no JSON, or holds something else than an object.
    """
    try:
        value = json.loads(read_small(path))
    except OSError as e:
        raise ConversionError(f"{path}: cannot be read: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise ConversionError(
            f"{path}: expected JSON: {' '.join(str(e).split())}; download the file again"
        ) from None
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: expected a JSON object, found {quoted(value)}")
    return value
