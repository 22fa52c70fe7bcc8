"""The JSON header of a `.qlm` file: what it must hold, checked to the last key.

Owns `docs/format.md` §2 and the one invariant; reader and writer both go through
here, so a file that the writer makes is one that the reader takes. Opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from qllama.config import ModelConfig, RopeScaling, RopeType, TokenizerConfig
from qllama.errors import (
    BadHeaderError,
    BadTensorError,
    QlmFormatError,
    UnsupportedModelError,
)
from qllama.format import strict_json
from qllama.format.spec import (
    MAX_QUALITY_BYTES,
    MAX_TENSORS,
    Extent,
    TensorInfo,
    TensorSpec,
    place,
    tensor_layout,
    tensor_n_bytes,
)

__all__ = ["Header", "decode_header", "encode_header", "encode_quality"]

_CRC32 = re.compile(r"[0-9a-f]{8}")
_HEADER_KEYS = ("config", "tokenizer", "recipe", "provenance", "tokenizer_blob", "tensors")
_EXTENT_KEYS = ("offset", "n_bytes", "crc32")
_TENSOR_KEYS = ("name", "type", "shape", "layout", *_EXTENT_KEYS, "quality")


@dataclass(frozen=True, slots=True)
class Header:
    """Everything a `.qlm` file says of itself.

    Parameters
    ----------
    config : ModelConfig
    tokenizer : TokenizerConfig
    recipe, provenance : dict
        Free-form JSON objects.
    tokenizer_blob : Extent
    tensors : tuple of TensorInfo
        In the order of the data.
    """

    config: ModelConfig
    tokenizer: TokenizerConfig
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    tokenizer_blob: Extent
    tensors: tuple[TensorInfo, ...]


def encode_header(header: Header) -> bytes:
    """Header as UTF-8 JSON; the same header always gives the same bytes.

    Raises
    ------
    ValueError
        When a free-form object is not JSON.
    """
    blob = header.tokenizer_blob
    return strict_json.dump(
        {
            "config": header.config.to_dict(),
            "tokenizer": header.tokenizer.to_dict(),
            "recipe": header.recipe,
            "provenance": header.provenance,
            "tokenizer_blob": {
                "offset": blob.offset,
                "n_bytes": blob.n_bytes,
                "crc32": f"{blob.crc32:08x}",
            },
            "tensors": [
                {
                    "name": t.name,
                    "type": t.type,
                    "shape": t.shape,
                    "layout": t.layout,
                    "offset": t.offset,
                    "n_bytes": t.n_bytes,
                    "crc32": f"{t.crc32:08x}",
                    "quality": t.quality,
                }
                for t in header.tensors
            ],
        }
    )


def encode_quality(quality: dict[str, Any]) -> bytes:
    """Quality figures of a tensor as they will stand in the header.

    Raises
    ------
    ValueError
        When they are not JSON or take more than 256 bytes.
    """
    data = strict_json.dump(quality)
    if len(data) > MAX_QUALITY_BYTES:
        raise ValueError(
            f"quality: expected at most {MAX_QUALITY_BYTES} bytes of JSON, found {len(data)}"
        )
    return data


def decode_header(data: bytes, data_n_bytes: int) -> Header:
    """Check a header against `docs/format.md` §2 and the size of the data section.

    Parameters
    ----------
    data : bytes
        The JSON.
    data_n_bytes : int
        Bytes from `data_offset` to the end of the file.

    Raises
    ------
    BadHeaderError, BadTensorError
        When the header is malformed; names the field or the tensor.
    UnsupportedModelError
        When it is well-formed but names something this qllama does not know.
    """
    try:
        document = strict_json.load(data)
    except ValueError as error:
        raise BadHeaderError(f"header: expected strict JSON: {error}") from None
    top = _object(document, "header", _HEADER_KEYS)
    header = Header(
        config=_config(_object(top["config"], "config")),
        tokenizer=_tokenizer(_object(top["tokenizer"], "tokenizer")),
        recipe=_object(top["recipe"], "recipe"),
        provenance=_object(top["provenance"], "provenance"),
        tokenizer_blob=_blob(top["tokenizer_blob"]),
        tensors=_tensors(top["tensors"]),
    )
    if header.config.num_hidden_layers > len(header.tensors):
        # Before anybody loops over layers that are not there.
        raise BadHeaderError(
            f"config.num_hidden_layers: found {header.config.num_hidden_layers}, but the file "
            f"has only {len(header.tensors)} tensors"
        )
    _check_placement(header.tokenizer_blob, header.tensors, data_n_bytes)
    return header


def _object(
    value: Any,
    where: str,
    keys: Sequence[str] | None = None,
    error: type[QlmFormatError] = BadHeaderError,
) -> dict[str, Any]:
    """`value` as a JSON object, of exactly `keys` where given."""
    if not isinstance(value, dict):
        raise error(f"{where}: expected an object, found {_show(value)}")
    if keys is not None and value.keys() != set(keys):
        missing = [key for key in keys if key not in value]
        unknown = [key[:80] for key in value if key not in keys]
        raise error(f"{where}: missing keys {missing}, unknown keys {unknown[:8]}")
    return value


def _show(value: Any) -> str:
    """Short text of any value for a message."""
    text = type(value).__name__ if isinstance(value, (dict, list)) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _config(data: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.from_dict(data)
    except UnsupportedModelError as error:
        if _is_unsupported(data):
            raise
        raise BadHeaderError(f"config: {error}") from None


def _is_unsupported(config: dict[str, Any]) -> bool:
    """Whether a refused config names a variant of a newer qllama, rather than nonsense."""
    rope = config.get("rope_scaling")
    rope = rope if isinstance(rope, dict) else {}
    act, rope_type = config.get("hidden_act"), rope.get("rope_type")
    return (
        not config.keys() <= {f.name for f in fields(ModelConfig)}
        or not rope.keys() <= {f.name for f in fields(RopeScaling)}
        or (isinstance(act, str) and act != "silu")
        or (isinstance(rope_type, str) and rope_type not in get_args(RopeType))
    )


def _tokenizer(data: dict[str, Any]) -> TokenizerConfig:
    try:
        return TokenizerConfig.from_dict(data)
    except UnsupportedModelError as error:
        raise BadHeaderError(f"tokenizer: {error}") from None


def _extent(entry: dict[str, Any], where: str, error: type[QlmFormatError]) -> Extent:
    for key in ("offset", "n_bytes"):
        if type(entry[key]) is not int or entry[key] < 0:
            raise error(f"{where}: {key}: expected an integer >= 0, found {_show(entry[key])}")
    crc32 = entry["crc32"]
    if not isinstance(crc32, str) or not _CRC32.fullmatch(crc32):
        raise error(f"{where}: crc32: expected 8 hex digits, found {_show(crc32)}")
    return Extent(entry["offset"], entry["n_bytes"], int(crc32, 16))


def _blob(value: Any) -> Extent:
    where = "tokenizer_blob"
    extent = _extent(_object(value, where, _EXTENT_KEYS), where, BadHeaderError)
    if extent.n_bytes == 0:
        raise BadHeaderError(f"{where}: n_bytes: expected at least 1, found 0")
    return extent


def _tensors(value: Any) -> tuple[TensorInfo, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TENSORS:
        found = len(value) if isinstance(value, list) else _show(value)
        raise BadHeaderError(f"tensors: expected an array of 1 to {MAX_TENSORS}, found {found}")
    tensors = tuple(_tensor(entry, i) for i, entry in enumerate(value))
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise BadTensorError(f"tensor {tensor.name!r}: the name is used twice")
        seen.add(tensor.name)
    return tensors


def _tensor(value: Any, index: int) -> TensorInfo:
    where = f"tensors[{index}]"
    entry = _object(value, where, _TENSOR_KEYS, BadTensorError)
    name, type_name, shape, quality = (entry[k] for k in ("name", "type", "shape", "quality"))
    if not isinstance(name, str) or not isinstance(type_name, str):
        raise BadTensorError(
            f"{where}: name, type: expected strings, found {_show(name)}, {_show(type_name)}"
        )
    if not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise BadTensorError(f"{where}: shape: expected an array of integers, found {_show(shape)}")
    spec = TensorSpec(name, type_name, tuple(shape))
    n_bytes = tensor_n_bytes(spec)
    where = f"tensor {name!r}"
    layout = tensor_layout(spec.shape)
    if entry["layout"] != layout:
        raise BadTensorError(f"{where}: layout: expected {layout}, found {_show(entry['layout'])}")
    extent = _extent(entry, where, BadTensorError)
    if extent.n_bytes != n_bytes:
        raise BadTensorError(
            f"{where}: n_bytes: expected {n_bytes} for {type_name} {shape}, found {extent.n_bytes}"
        )
    if quality is not None:
        try:
            encode_quality(_object(quality, f"{where}: quality", error=BadTensorError))
        except ValueError as error:
            raise BadTensorError(f"{where}: {error}") from None
    return TensorInfo(
        name, type_name, spec.shape, layout, extent.offset, n_bytes, extent.crc32, quality
    )


def _check_placement(blob: Extent, tensors: Sequence[TensorInfo], data_n_bytes: int) -> None:
    """Check the one invariant: everything in order, 64-aligned, no gap, exact end."""
    offsets, end = place([blob.n_bytes, *(t.n_bytes for t in tensors)])
    if blob.offset != 0:
        raise BadHeaderError(f"tokenizer_blob: offset: expected 0, found {blob.offset}")
    for tensor, offset in zip(tensors, offsets[1:], strict=True):
        if tensor.offset != offset:
            raise BadTensorError(
                f"tensor {tensor.name!r}: offset: expected {offset}, found {tensor.offset}"
            )
    if end != data_n_bytes:
        raise BadTensorError(
            f"tensor {tensors[-1].name!r}: expected to end with the file at data byte "
            f"{data_n_bytes}, ends at {end}"
        )
