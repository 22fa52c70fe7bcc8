"""What the small files beside a vocabulary say of it.

Owns `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and the token
ids of `generation_config.json` and `config.json`. Knows no vocabulary: a token is still a
text here, or a number that nobody has checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.byte_level_bpe import AddedToken
from converter.chat_templates import read_chat_template
from converter.json_files import read_json_object
from converter.wording import quoted
from qllama.errors import TokenizerError

__all__ = ["TokenizerSettings", "read_settings"]

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenizerSettings:
    """What is said of a vocabulary; absent is never the same as null.

    Parameters
    ----------
    named : mapping of str to str or None
        `bos_token` and its like, each one that is said; None: there is none.
    added : tuple of AddedToken
        In the order of their ids, which are distinct.
    special : frozenset of str
        Further texts that are control tokens, if they are tokens.
    end_ids : tuple of (where, id)
        Every `eos_token_id` that is said, and where: a name for messages.
    bos_id, pad_id : int or None
        `bos_token_id` and `pad_token_id` of the model's config.
    add_bos_token, add_eos_token, legacy, add_prefix_space : bool or None
        As in `tokenizer_config.json`; None: not said.
    chat_template : str or None
        Jinja source.
    """

    named: Mapping[str, str | None]
    added: tuple[AddedToken, ...]
    special: frozenset[str]
    end_ids: tuple[tuple[str, int], ...]
    bos_id: int | None
    pad_id: int | None
    add_bos_token: bool | None
    add_eos_token: bool | None
    legacy: bool | None
    add_prefix_space: bool | None
    chat_template: str | None


def read_settings(directory: Path, declared: Mapping[str, Any]) -> TokenizerSettings:
    """Read the files of a directory that say how its vocabulary is used.

    Parameters
    ----------
    directory : Path
        Each of the files may be missing.
    declared : mapping
        The values of the model's `config.json`, or what stands for it.

    Raises
    ------
    TokenizerError
        When a value is malformed; names file and field.
    ConversionError
        When a file is no JSON object.
    """
    config_path = directory / "tokenizer_config.json"
    config = _read(config_path)
    # As in transformers: a file that tells all added tokens supersedes the older ones.
    is_complete = "added_tokens_decoder" in config
    map_path = directory / "special_tokens_map.json"
    sources = {config_path: config} | ({} if is_complete else {map_path: _read(map_path)})
    named: dict[str, str | None] = {}
    special: set[str] = set()
    for path, values in sources.items():
        named |= _named_tokens(path, values)
        special |= _special_texts(path, values)
    if is_complete:
        added = _decoder_tokens(config_path, config["added_tokens_decoder"])
    else:
        known = special | {text for text in named.values() if text is not None}
        added = _numbered_tokens(directory / "added_tokens.json", known)
    generation_path = directory / "generation_config.json"
    generation = _read(generation_path)
    ends = [
        *_ids(f"{generation_path}: eos_token_id", generation.get("eos_token_id")),
        *_ids("config: eos_token_id", declared.get("eos_token_id")),
    ]
    flags = {
        name: _optional_bool(config_path, name, config.get(name))
        for name in ("add_bos_token", "add_eos_token", "legacy", "add_prefix_space")
    }
    return TokenizerSettings(
        named=named,
        added=added,
        special=frozenset(special),
        end_ids=tuple(ends),
        bos_id=_first_id("config: bos_token_id", declared.get("bos_token_id")),
        pad_id=_first_id("config: pad_token_id", declared.get("pad_token_id")),
        chat_template=read_chat_template(directory, config),
        **flags,
    )


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _named_tokens(where: Path, names: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the tokens that have a role; old conversions of Llama 1 say "" for "not said"."""
    said = {key: names[key] for key in _NAMED if key in names}
    texts = {
        key: None if value is None else _text(where, key, value) for key, value in said.items()
    }
    return {key: text for key, text in texts.items() if text != ""}


def _special_texts(where: Path, names: Mapping[str, Any]) -> set[str]:
    texts: set[str] = set()
    for key in _LISTS:
        value = names.get(key) or []
        items = value.values() if isinstance(value, dict) else value
        if isinstance(items, str | int | float):
            raise TokenizerError(f"{where}: {key}: expected a list, found {quoted(value)}")
        texts.update(_text(where, key, item) for item in items)
    return texts


def _text(where: Path, key: str, value: Any) -> str:
    """Return a token's text, which may be wrapped in an object with flags."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise TokenizerError(f"{where}: {key}: expected a token, found {quoted(value)}")
    return text


def _decoder_tokens(where: Path, entries: Any) -> tuple[AddedToken, ...]:
    field = f"{where}: added_tokens_decoder"
    if not isinstance(entries, dict):
        raise TokenizerError(f"{field}: expected an object, found {quoted(entries)}")
    tokens = []
    for key, entry in entries.items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if not (key.isascii() and key.isdigit() and isinstance(text, str) and text):
            raise TokenizerError(
                f"{field}: expected token ids and objects with content, "
                f"found {quoted(key)}: {quoted(entry)}"
            )
        flags = {name: entry.get(name, False) for name in _FLAGS}
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise TokenizerError(f"{field}[{key}].{name}: expected bool, found {value!r}")
        tokens.append(AddedToken(int(key), text, **flags))
    return _ordered(field, tokens)


def _numbered_tokens(where: Path, special: set[str]) -> tuple[AddedToken, ...]:
    """Read `added_tokens.json`, which gives nothing but ids."""
    tokens = []
    for text, token_id in _read(where).items():
        if type(token_id) is not int or token_id < 0 or not text:
            raise TokenizerError(
                f"{where}: expected tokens and their ids, found {quoted(text)}: {quoted(token_id)}"
            )
        is_special = text in special
        tokens.append(AddedToken(token_id, text, special=is_special, normalized=not is_special))
    return _ordered(str(where), tokens)


def _ordered(where: str, tokens: list[AddedToken]) -> tuple[AddedToken, ...]:
    tokens.sort(key=lambda token: token.id)
    for one, other in itertools.pairwise(tokens):
        if one.id == other.id:
            raise TokenizerError(
                f"{where}: {one.content!r} and {other.content!r} are both token {one.id}"
            )
    return tuple(tokens)


def _ids(field: str, value: Any) -> list[tuple[str, int]]:
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for token_id in values:
        if type(token_id) is not int:
            raise TokenizerError(f"{field}: expected a token id or a list, found {quoted(value)}")
    return [(field, token_id) for token_id in values]


def _first_id(field: str, value: Any) -> int | None:
    return next((token_id for _, token_id in _ids(field, value)), None)


def _optional_bool(where: Path, key: str, value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TokenizerError(f"{where}: {key}: expected bool, found {quoted(value)}")
    return value
