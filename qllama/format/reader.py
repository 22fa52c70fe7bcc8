"""Opens a `.qlm` file: checks all of it but the data, then maps or reads the data.

Owns that memory and the views into it. Kernels trust every address they are
given, so nothing is handed out of a file that breaks `docs/format.md`. Knows no
kernel and no model.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from qllama.errors import (
    BadTensorError,
    ChecksumError,
    ModelNotFoundError,
    OutOfMemoryError,
    QlmFormatError,
    UnsupportedModelError,
)
from qllama.format import strict_json
from qllama.format.header import Header, decode_header
from qllama.format.prelude import Prelude, check_region, decode_prelude
from qllama.format.spec import PRELUDE_SIZE, Extent, TensorInfo
from qllama.format.storage import map_data, read_data
from qllama.memory import available_bytes, populate
from qllama.quant import codec

__all__ = ["QlmFile"]

_VERIFY_CHUNK = 4 * 1024 * 1024
_MAX_MESSAGE = 400


class QlmFile:
    """A `.qlm` file, mapped read-only or read into memory; made by `QlmFile.open`.

    Views from `data` keep that memory alive, also after `close`.

    Attributes
    ----------
    path : Path
    config : ModelConfig
    tokenizer : TokenizerConfig
    recipe, provenance : dict
        What the converter noted.
    tensors : dict of str to TensorInfo
        In the order of the data.
    data_offset : int
        Where the data begins in the file.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        data: npt.NDArray[np.uint8],
        data_offset: int,
        is_mapped: bool,
    ) -> None:
        self.path = path
        self.data_offset = data_offset
        self.config = header.config
        self.tokenizer = header.tokenizer
        self.recipe = header.recipe
        self.provenance = header.provenance
        self.tensors = {t.name: t for t in header.tensors}
        self._blob = header.tokenizer_blob
        self._bytes: npt.NDArray[np.uint8] | None = data
        self._awaits_prefetch = is_mapped

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        use_mmap: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> QlmFile:
        """Check a file, and map or read its data; to map takes milliseconds whatever its size.

        Checksums and padding of the data are left to `verify`.

        Parameters
        ----------
        path : str or path
        use_mmap : bool
            False reads all of the data into memory of this process' own, in huge pages
            where the system has them: it then shares no memory with other processes,
            and the file may change or vanish.
        on_progress : callable, optional
            Called with the bytes read so far and their total, when they are read.

        Raises
        ------
        ModelNotFoundError
            When there is no such file or it cannot be read.
        OutOfMemoryError
            When the data is to be read, and does not fit the memory that is free.
        QlmFormatError
            When it does not follow `docs/format.md`; the subclass says how.
        UnsupportedModelError
            When its model needs what this qllama does not know.
        """
        path = Path(path)
        try:
            # Before opening: a pipe would wait for its writer.
            if not stat.S_ISREG(path.stat().st_mode):
                raise ModelNotFoundError(
                    f"{path}: expected a .qlm file, found "
                    f"{'a directory' if path.is_dir() else 'no regular file'}; "
                    "run `qllama convert` if it holds a checkpoint"
                )
            with path.open("rb") as file:
                prelude, header = _read_header(file)
                data = (
                    map_data(file, prelude) if use_mmap else read_data(file, prelude, on_progress)
                )
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise ModelNotFoundError(f"{path}: cannot be read: {reason}") from error
        except (QlmFormatError, UnsupportedModelError, OutOfMemoryError) as error:
            # A hostile header can put megabytes into a message.
            raise type(error)(f"{path}: {str(error)[:_MAX_MESSAGE]}") from error
        return cls(path, header, data, prelude.data_offset, is_mapped=use_mmap)

    def __enter__(self) -> QlmFile:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hand out no more views; the memory is given back when the last one is gone."""
        self._bytes = None

    def prefetch(self) -> None:
        """Bring a mapped file into memory in the background, at the disk's speed.

        For who is about to use all of it: otherwise its pages come one by one, as they
        are touched. A file larger than the free memory is left to come so.
        """
        data = self._mapped()
        if self._awaits_prefetch and data.size <= available_bytes():
            self._awaits_prefetch = False
            is_open = lambda: self._bytes is not None  # noqa: E731
            threading.Thread(target=populate, args=(data, is_open), daemon=True).start()

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of all that decides what the model computes, by the checksums of its data.

        Files whose provenance alone differs have the same.
        """
        tensors = [(t.name, t.type, t.shape, t.crc32) for t in self.tensors.values()]
        identity = [self.config.to_dict(), self._blob.crc32, tensors]
        return hashlib.sha256(strict_json.dump(identity)).digest()

    @property
    def tokenizer_n_bytes(self) -> int:
        """Size of `tokenizer_blob`, which is not read."""
        return self._blob.n_bytes

    @property
    def tokenizer_blob(self) -> bytes:
        """The tokenizer's own file, as `tokenizer.kind` says.

        Raises
        ------
        ChecksumError
            When it is damaged.
        """
        blob = self._view(self._blob).tobytes()
        self._check(zlib.crc32(blob), self._blob, "tokenizer blob")
        return blob

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """Storage of a tensor.

        Returns
        -------
        uint8, (n_bytes,)
            Read-only view of the data, 64-byte aligned, not copied.

        Raises
        ------
        BadTensorError
            When there is no such tensor.
        """
        return self._view(self._info(name))

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """Values of a 1-D tensor.

        Returns
        -------
        float32, (n,)
            A read-only view of the data where the type is `f32`.

        Raises
        ------
        BadTensorError
            When there is no such tensor or it is not 1-D.
        """
        info = self._info(name, n_dims=1)
        data = self._view(info)
        if info.type == "bf16":
            return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return data.view({"f32": "<f4", "f16": "<f2"}[info.type]).astype(np.float32, copy=False)

    def matrix(self, name: str) -> npt.NDArray[np.float32]:
        """Weights of a 2-D tensor, decoded; for the reference and for inspection.

        Returns
        -------
        float32, (rows, k)

        Raises
        ------
        BadTensorError
            When there is no such tensor or it is not 2-D.
        """
        info = self._info(name, n_dims=2)
        return codec(info.type).dequantize(self._view(info), *info.shape)

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Read all of the data and check its checksums and its padding.

        Parameters
        ----------
        on_progress : callable, optional
            Called with the bytes checked so far and their total.

        Raises
        ------
        ChecksumError
            At the first damage found; names the tensor.
        """
        total = self._mapped().size
        end = 0
        entries = [("tokenizer blob", self._blob)]
        entries += [
            (f"tensor {t.name!r}", Extent(t.offset, t.n_bytes, t.crc32))
            for t in self.tensors.values()
        ]
        for where, extent in entries:
            if self._mapped()[end : extent.offset].any():
                raise ChecksumError(
                    f"{self.path}: padding before {where}: expected zeros; "
                    "the file is damaged: fetch or convert the model again"
                )
            end = extent.offset + extent.n_bytes
            crc32 = 0
            for start in range(extent.offset, end, _VERIFY_CHUNK):
                stop = min(start + _VERIFY_CHUNK, end)
                crc32 = zlib.crc32(self._mapped()[start:stop].data, crc32)
                if on_progress is not None:
                    on_progress(stop, total)
            self._check(crc32, extent, where)

    def _mapped(self) -> npt.NDArray[np.uint8]:
        """The data section, uint8, (n_bytes,), mapped or read."""
        if self._bytes is None:
            raise ValueError(f"{self.path}: the file is closed")
        return self._bytes

    def _view(self, extent: Extent | TensorInfo) -> npt.NDArray[np.uint8]:
        return self._mapped()[extent.offset : extent.offset + extent.n_bytes]

    def _info(self, name: str, n_dims: int | None = None) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise BadTensorError(f"{self.path}: tensor {name!r}: not in this file")
        if n_dims is not None and len(info.shape) != n_dims:
            raise BadTensorError(
                f"{self.path}: tensor {name!r}: expected {n_dims} dimension(s), "
                f"found shape {list(info.shape)}"
            )
        return info

    def _check(self, crc32: int, extent: Extent, where: str) -> None:
        if crc32 != extent.crc32:
            raise ChecksumError(
                f"{self.path}: {where}: checksum: expected {extent.crc32:08x}, found "
                f"{crc32:08x}; the file is damaged: fetch or convert the model again"
            )


def _read_header(file: BinaryIO) -> tuple[Prelude, Header]:
    """Read and check everything before the data."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(PRELUDE_SIZE)
    prelude = decode_prelude(start)
    region = start + file.read(prelude.data_offset - PRELUDE_SIZE)
    text = check_region(prelude, region, size)
    return prelude, decode_header(text, prelude.file_size - prelude.data_offset)
