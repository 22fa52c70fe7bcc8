"""GGUF files that were split in parts, `NAME-00001-of-00003.gguf`, read as one header.

Owns the finding of the other parts and the checks that they belong together. All
metadata is in the first part; each has a tensor table of its own.

Reference: llama.cpp's `gguf-split` and its `llama_model_loader`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from converter.sources.gguf_header import GgufHeader, GgufTensorInfo, read_header
from converter.wording import quoted
from qllama.errors import ConversionError

__all__ = ["read_parts"]

_NUMBER, _COUNT, _N_TENSORS = "split.no", "split.count", "split.tensors.count"
_NAME = re.compile(r"(?P<stem>.+)-[0-9]{5}-of-(?P<count>[0-9]{5})\.gguf", re.IGNORECASE)


def read_parts(path: Path) -> tuple[GgufHeader, tuple[Path, ...]]:
    """Parse and check the header of a GGUF file and, of a split one, of all its parts.

    Parameters
    ----------
    path : Path
        The whole file, or any of its parts.

    Returns
    -------
    GgufHeader
        The first part's metadata, the tensors of all.
    tuple of Path
        The parts, in order.

    Raises
    ------
    ConversionError
        As `read_header`; also when a part is missing or belongs to another file.
    """
    header = read_header(path)
    count = header.metadata.get(_COUNT, 0)
    if count in (0, 1):
        return header, (path,)
    match = _NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise ConversionError(
            f"{path}: one of {quoted(count)} parts of a split GGUF, expected to be called "
            f"NAME-00001-of-0000N.gguf with {quoted(count)} for N; give it its name back"
        )
    files = tuple(
        path.with_name(f"{match['stem']}-{i + 1:05}-of-{count:05}{path.suffix}")
        for i in range(count)
    )
    missing = [file.name for file in files if not file.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConversionError(
            f"{path}: one of {count} parts of a split GGUF; {missing[0]}{more} is missing beside it"
        )
    headers = [header if file == path else read_header(file) for file in files]
    return _joined(files, headers), files


def _joined(files: tuple[Path, ...], headers: list[GgufHeader]) -> GgufHeader:
    tensors: dict[str, GgufTensorInfo] = {}
    for i, (file, header) in enumerate(zip(files, headers, strict=True)):
        found = header.metadata.get(_NUMBER), header.metadata.get(_COUNT)
        if found != (i, len(files)):
            raise ConversionError(
                f"{file}: expected {_NUMBER} and {_COUNT} to be {i} and {len(files)}, found "
                f"{quoted(found[0])} and {quoted(found[1])}; it is a part of another file"
            )
        for name, info in header.tensors.items():
            if name in tensors:
                raise ConversionError(
                    f"{file}: tensor {quoted(name)} is also in {tensors[name].path.name}"
                )
            tensors[name] = info
    declared = headers[0].metadata.get(_N_TENSORS, len(tensors))
    if declared != len(tensors):
        raise ConversionError(
            f"{files[0]}: {_N_TENSORS} is {quoted(declared)}, but the {len(files)} parts hold "
            f"{len(tensors)} tensors; fetch them again"
        )
    return replace(headers[0], tensors=tensors)
