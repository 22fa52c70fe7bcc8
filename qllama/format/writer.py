"""Writes a `.qlm` file in one pass, tensor after tensor.

Owns the order of writing and the checksums; sizes and places follow from types
and shapes before the first byte is written. Knows no checkpoint and no codec.

Reference: `docs/format.md` §4.
"""

from __future__ import annotations

import operator
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig, TokenizerConfig
from qllama.errors import ConversionError, QlmFormatError
from qllama.format import strict_json
from qllama.format.header import Header, decode_header, encode_header, encode_quality
from qllama.format.partial import PartialFile
from qllama.format.prelude import encode_region
from qllama.format.spec import (
    DATA_ALIGNMENT,
    MAX_HEADER_REGION,
    MAX_QUALITY_BYTES,
    PRELUDE_SIZE,
    Extent,
    TensorInfo,
    TensorSpec,
    align_up,
    place,
    tensor_layout,
    tensor_n_bytes,
)

__all__ = ["QlmWriter"]


class QlmWriter:
    """Context manager that writes one `.qlm` file.

    Leaving the block normally completes the file and gives it its name; leaving
    it by an exception removes what was written. Whatever happens, a file under
    the target's name is whole.

    Parameters
    ----------
    path : path-like
        The target; a regular file of that name is replaced at the end.
    config : ModelConfig
    tokenizer : TokenizerConfig
    tokenizer_blob : bytes
        At least one byte.
    tensors : sequence of TensorSpec
        All tensors, in the order in which they will be written.
    recipe, provenance : mapping
        Free-form JSON objects.

    Attributes
    ----------
    file_size : int
        Bytes of the whole file, known before anything is written.

    Raises
    ------
    ConversionError
        When the arguments cannot make a valid file, the disk is too small or the
        operating system refuses; here and in every method.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: ModelConfig,
        tokenizer: TokenizerConfig,
        tokenizer_blob: bytes,
        tensors: Sequence[TensorSpec],
        recipe: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> None:
        self._path = Path(path)
        self._blob = tokenizer_blob
        try:
            infos, data_n_bytes = _layout(len(tokenizer_blob), tensors)
            self._header = Header(
                config,
                tokenizer,
                dict(recipe),
                dict(provenance),
                Extent(0, len(tokenizer_blob), zlib.crc32(tokenizer_blob)),
                infos,
            )
            text = encode_header(self._header)
            # The reader's own check: what it would refuse is not worth writing.
            decode_header(text, data_n_bytes)
        except (QlmFormatError, ValueError) as error:
            raise ConversionError(f"{self._path}: cannot be written: {error}") from error
        # Checksums have a fixed width; figures of quality come later and need room.
        self._provenance_n_bytes = len(strict_json.dump(self._header.provenance))
        room = PRELUDE_SIZE + len(text) + MAX_QUALITY_BYTES * len(tensors)
        self._data_offset = align_up(room, DATA_ALIGNMENT)
        if self._data_offset > MAX_HEADER_REGION:
            raise ConversionError(
                f"{self._path}: cannot be written: header: expected at most "
                f"{MAX_HEADER_REGION} bytes, needs {self._data_offset}"
            )
        self.file_size = self._data_offset + data_n_bytes
        self._file: PartialFile | None = None
        self._done: list[TensorInfo] = []
        self._filled = 0
        self._crc32 = 0
        self._quality: dict[str, dict[str, Any]] = {}

    def check_target(self) -> None:
        """Refuse now a target that entering the block would refuse; nothing is written.

        For a caller with costly work to do before it enters.
        """
        PartialFile(self._path, self.file_size).discard()

    def __enter__(self) -> QlmWriter:
        self._file = PartialFile(self._path, self.file_size)
        try:
            self._file.write(self._blob, at=self._data_offset)
            self._pad(len(self._blob), self._header.tensors[0].offset)
        except BaseException:
            self._file.discard()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        file = self._open_file()
        try:
            if exc_type is None:
                self.finish()
                file.commit()
        finally:
            self._file = None
            file.discard()

    def finish(self) -> Path:
        """Write the header, so that the file can be read under a name of its own.

        Leaving the block does it too, and gives the file its name.

        Returns
        -------
        Path
            The file's name for the time being.
        """
        file = self._open_file()
        if len(self._done) < len(self._header.tensors):
            info = self._header.tensors[len(self._done)]
            raise ConversionError(
                f"{self._path}: tensor {info.name!r}: expected {info.n_bytes} bytes, "
                f"found {self._filled} when writing ended"
            )
        tensors = tuple(replace(t, quality=self._quality.get(t.name)) for t in self._done)
        text = encode_header(replace(self._header, tensors=tensors))
        file.write(encode_region(text, self._data_offset, self.file_size), at=0)
        file.flush()
        return file.path

    def write(
        self, name: str, data: bytes | bytearray | memoryview | npt.NDArray[np.uint8]
    ) -> None:
        """Append bytes to a tensor.

        Tensors are written strictly in table order; one tensor may take many calls.

        Parameters
        ----------
        name : str
        data : bytes-like or uint8, (n,)
            The next bytes of its storage (`docs/format.md` §3), C-contiguous.
        """
        file = self._open_file()
        view = data.data if isinstance(data, np.ndarray) else memoryview(data)
        if view.nbytes == 0:
            return
        view = view.cast("B")
        info = self._expected(name, view.nbytes)
        file.write(view)
        self._crc32 = zlib.crc32(view, self._crc32)
        self._filled += view.nbytes
        if self._filled == info.n_bytes:
            self._done.append(replace(info, crc32=self._crc32))
            self._filled = self._crc32 = 0
            if len(self._done) < len(self._header.tensors):
                following = self._header.tensors[len(self._done)]
                self._pad(info.offset + info.n_bytes, following.offset)

    def set_quality(self, name: str, figures: Mapping[str, Any]) -> None:
        """Record what was measured of a tensor; any time before the block is left.

        Parameters
        ----------
        name : str
            Of a tensor of the table.
        figures : mapping
            Free-form JSON object of at most 256 bytes.
        """
        if name not in (t.name for t in self._header.tensors):
            raise ConversionError(f"{self._path}: tensor {name!r}: not in the table")
        try:
            encode_quality(dict(figures))
        except ValueError as error:
            raise ConversionError(f"{self._path}: tensor {name!r}: {error}") from None
        self._quality[name] = dict(figures)

    def set_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Replace what is told of the source, where it is known only after the weights are read.

        Parameters
        ----------
        provenance : mapping
            Free-form JSON object, at most as long as the one that this writer was made with.
        """
        n_bytes = len(strict_json.dump(dict(provenance)))
        if n_bytes > self._provenance_n_bytes:
            raise ConversionError(
                f"{self._path}: provenance: expected at most {self._provenance_n_bytes} bytes "
                f"of JSON, found {n_bytes}"
            )
        self._header = replace(self._header, provenance=dict(provenance))

    def _open_file(self) -> PartialFile:
        if self._file is None:
            raise ValueError("QlmWriter is used outside its `with` block")
        return self._file

    def _expected(self, name: str, n_bytes: int) -> TensorInfo:
        """Entry of the tensor that is being written; checks that this is it."""
        tensors = self._header.tensors
        if len(self._done) == len(tensors):
            raise ConversionError(f"{self._path}: tensor {name!r}: all tensors are written already")
        info = tensors[len(self._done)]
        if name != info.name:
            raise ConversionError(
                f"{self._path}: expected bytes of tensor {info.name!r} "
                f"({self._filled} of {info.n_bytes} written), found tensor {name!r}"
            )
        if self._filled + n_bytes > info.n_bytes:
            raise ConversionError(
                f"{self._path}: tensor {name!r}: expected {info.n_bytes} bytes, "
                f"found at least {self._filled + n_bytes}"
            )
        return info

    def _pad(self, start: int, stop: int) -> None:
        self._open_file().write(bytes(stop - start))


def _layout(blob_n_bytes: int, specs: Sequence[TensorSpec]) -> tuple[tuple[TensorInfo, ...], int]:
    """Place the tensors after the blob; also the size of the data section."""
    # Sources give shapes as numpy integers, which JSON does not take.
    specs = [TensorSpec(s.name, s.type, tuple(map(operator.index, s.shape))) for s in specs]
    sizes = [tensor_n_bytes(s) for s in specs]
    offsets, end = place([blob_n_bytes, *sizes])
    infos = tuple(
        TensorInfo(s.name, s.type, s.shape, tensor_layout(s.shape), offset, n_bytes, crc32=0)
        for s, offset, n_bytes in zip(specs, offsets[1:], sizes, strict=True)
    )
    return infos, end
