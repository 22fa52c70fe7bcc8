"""Where a checkpoint directory keeps its chat template.

Owns the order of the places. The template is taken as it stands; whoever renders it
learns whether it is any good.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.json_files import read_json_object
from converter.wording import quoted
from qllama.errors import TokenizerError

__all__ = ["read_chat_template"]


def read_chat_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Return the Jinja source of the directory's chat template, None without one.

    `chat_template.jinja` comes first, as in `transformers`; then `chat_template` of
    `tokenizer_config.json`, then of `chat_template.json`. Of several named templates the
    one that is named `default` is taken.

    Parameters
    ----------
    directory : Path
        The checkpoint's.
    tokenizer_config : mapping
        The values of its `tokenizer_config.json`.

    Raises
    ------
    TokenizerError
        When a template is no text, or none of several is the default.
    ConversionError
        When `chat_template.json` is no JSON object.
    """
    jinja = directory / "chat_template.jinja"
    if jinja.is_file():
        try:
            return jinja.read_bytes().decode()
        except (OSError, ValueError) as e:
            raise TokenizerError(f"{jinja}: expected UTF-8 text: {e}") from None
    value = tokenizer_config.get("chat_template")
    where = directory / "tokenizer_config.json"
    other = directory / "chat_template.json"
    if value is None and other.is_file():
        value, where = read_json_object(other).get("chat_template"), other
    if isinstance(value, list):
        return _default_of(where, value)
    if value is not None and not isinstance(value, str):
        raise TokenizerError(
            f"{where}: chat_template: expected text or a list, found {quoted(value)}"
        )
    return value or None


def _default_of(where: Path, entries: list[Any]) -> str:
    """Return the template called `default`, or the only one."""
    templates: dict[str, str] = {}
    for entry in entries:
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("template"), str)
        ):
            raise TokenizerError(
                f"{where}: chat_template: expected entries with name and template, "
                f"found {quoted(entry)}"
            )
        templates[entry["name"]] = entry["template"]
    if len(templates) == 1:
        return next(iter(templates.values()))
    if "default" not in templates:
        raise TokenizerError(
            f"{where}: chat_template: none of {', '.join(map(quoted, templates)) or '0 templates'} "
            "is named 'default'; save the wanted one as chat_template.jinja"
        )
    return templates["default"]
