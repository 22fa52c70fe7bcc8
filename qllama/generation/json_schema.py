"""JSON Schemas, as far as a model that fills them in needs them changed.

Owns how JSON is spaced, and that objects have the properties which are listed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = ["ONE_LINE", "closed"]

ONE_LINE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""As `json.dumps` writes it: with free white space, a small model writes nothing else."""

# Where the schemas within a schema are: alone, in lists, by name.
_ALONE = ("items", "additionalProperties")
_LISTED = ("anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


def closed(schema: Any) -> Any:
    """Return `schema` with objects that list properties closed to others.

    JSON Schema allows any other property where `additionalProperties` does not say
    otherwise, and a small model would go on inventing them. What the result allows, the
    schema allows. Objects stay as they are where they say it themselves, and all do if
    schemas are joined anywhere (`allOf`, or properties beside `$ref`, `anyOf`, `oneOf`).

    Parameters
    ----------
    schema : mapping or bool
        Not modified.
    """
    return schema if _joins(schema) else _closed(schema)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    result = {key: _changed(key, value) for key, value in schema.items()}
    listed = schema.get("properties")
    if (
        isinstance(listed, Mapping)
        and "patternProperties" not in schema
        and all(name in listed for name in schema.get("required", ()))
    ):
        result.setdefault("additionalProperties", False)
    return result


def _changed(key: str, value: Any) -> Any:
    if key in _ALONE:
        return _closed(value)
    if key in _LISTED and isinstance(value, list):
        return [_closed(item) for item in value]
    if key in _NAMED and isinstance(value, Mapping):
        return {name: _closed(item) for name, item in value.items()}
    return value


def _joins(schema: Any) -> bool:
    """Whether the properties of an object are listed in more than one place."""
    if not isinstance(schema, Mapping):
        return False
    beside = ("$ref", "anyOf", "oneOf") if "properties" in schema else ()
    return (
        "allOf" in schema or any(key in schema for key in beside) or any(map(_joins, _in(schema)))
    )


def _in(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the schemas within a schema."""
    for key, value in schema.items():
        if key in _ALONE:
            yield value
        elif key in _LISTED and isinstance(value, list):
            yield from value
        elif key in _NAMED and isinstance(value, Mapping):
            yield from value.values()
