"""Types of blocks with one float16 scale: the values of ggml's types of the same name.

Owns what `q8_0` and `q4_0` share: storage, and the lossless way in from ggml's
blocks. How weights become codes is `scale_search`'s business.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from qllama.errors import ConversionError
from qllama.quant.codec import BlockCodec, Grid
from qllama.quant.importance import blocks_of_columns
from qllama.quant.scale_search import search_scale
from qllama.quant.tile16 import pad_matrix, tile_per_block, untile_per_block
from qllama.quant.types import BLOCK, TILE_ROWS

__all__ = ["ScaledCodec"]

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float16 = npt.NDArray[np.float16]


class ScaledCodec(BlockCodec):
    """A type of blocks with one float16 scale, stored as ggml's type of the same name.

    `pack` and `unpack` carry codes and scales over from ggml's blocks without loss.
    """

    #: numpy dtype of the codes that `pack` takes: what ggml's blocks hold.
    code_dtype: type[np.int8] | type[np.uint8]
    #: The code that stands for 0: weight = scale * (code - zero_code).
    zero_code: int
    #: Range of code - zero_code.
    least: int
    greatest: int
    #: As `search_scale` takes them, ggml's first.
    starts: Float32
    ggml_block_n_bytes: int

    def encode_blocks(
        self, blocks: Float32, h: Float32, fast: bool
    ) -> tuple[npt.NDArray[Any], Float16]:
        """Quantize blocks to the least weighted error.

        Parameters
        ----------
        blocks : float32, (n, 32)
        h : float32, (32, n)
            As `search_scale` takes it.
        fast : bool
            Whether to take the first start.

        Returns
        -------
        codes : code_dtype, (n, 32)
        scales : float16, (n,)
        """
        x = np.ascontiguousarray(blocks.T)
        codes, scales = search_scale(
            x, h, self.starts[:1] if fast else self.starts, self.least, self.greatest
        )
        moved = (codes + np.float32(self.zero_code)).astype(self.code_dtype)
        return np.ascontiguousarray(moved.T), scales.astype(np.float16)

    @abstractmethod
    def codes_from_ggml(self, raw: UInt8) -> npt.NDArray[Any]:
        """Codes, code_dtype (n, 32), of ggml's blocks without their scales, uint8 (n, bytes)."""

    @abstractmethod
    def _codes_to_bytes(self, codes: npt.NDArray[Any]) -> UInt8:
        """Codes (rows, k) to the code bytes (tiles, blocks, bytes) of the storage."""

    @abstractmethod
    def _codes_from_bytes(self, stored: UInt8) -> npt.NDArray[Any]:
        """Undo `_codes_to_bytes`."""

    def from_ggml_blocks(self, raw: UInt8) -> tuple[npt.NDArray[Any], Float16]:
        """Take rows of ggml blocks apart.

        Parameters
        ----------
        raw : uint8, (rows, n_blocks * ggml_block_n_bytes)
            Each block: a little-endian float16 scale, then its codes.

        Returns
        -------
        codes : code_dtype, (rows, 32 * n_blocks)
        scales : float16, (rows, n_blocks)

        Raises
        ------
        ConversionError
            When a row is not a whole number of blocks.
        """
        if raw.dtype != np.uint8 or raw.ndim != 2 or raw.shape[1] % self.ggml_block_n_bytes:
            raise ConversionError(
                f"ggml {self.kind.name} rows: expected uint8 (rows, a multiple of "
                f"{self.ggml_block_n_bytes}), found {raw.dtype} {raw.shape}"
            )
        rows = len(raw)
        blocks = np.ascontiguousarray(raw).reshape(-1, self.ggml_block_n_bytes)
        scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float16)
        codes = self.codes_from_ggml(blocks[:, 2:])
        return codes.reshape(rows, -1), scales.reshape(rows, -1)

    def pack(self, codes: npt.NDArray[Any], scales: Float16) -> UInt8:
        """Store given codes and scales.

        Parameters
        ----------
        codes : code_dtype, (rows, k)
            int8 for `q8_0`; uint8 in 0..15 for `q4_0`.
        scales : float16, (rows, k / 32 rounded up)

        Returns
        -------
        uint8, (matrix_n_bytes(kind.name, rows, k),)

        Raises
        ------
        ConversionError
            When shapes or dtypes do not fit, a code is out of range, or a scale is
            not finite.
        """
        rows, k = codes.shape
        if codes.dtype != self.code_dtype or scales.shape != (rows, -(-k // BLOCK)):
            raise ConversionError(
                f"{self.kind.name} codes and scales: expected {np.dtype(self.code_dtype)} "
                f"(rows, k) and (rows, k / 32), found {codes.dtype} {codes.shape} "
                f"and {scales.shape}"
            )
        if scales.dtype != np.float16 or not np.isfinite(scales).all():
            raise ConversionError(
                f"{self.kind.name} scales: expected finite float16, found a NaN or an "
                f"infinity, or {scales.dtype}; the checkpoint is damaged"
            )
        zeros = np.zeros((1, BLOCK), np.float32)
        _, zero_scale = self.encode_blocks(zeros, zeros.T, fast=True)
        codes = pad_matrix(codes, self.zero_code)
        padded = np.full((len(codes), scales.shape[1]), zero_scale)
        padded[:rows] = scales
        code_bytes = self._codes_to_bytes(codes)
        scale_bytes = np.ascontiguousarray(tile_per_block(padded).astype("<f2")).view(np.uint8)
        return np.concatenate([code_bytes, scale_bytes], axis=2).reshape(-1)

    def unpack(self, data: UInt8, rows: int, k: int) -> tuple[npt.NDArray[Any], Float16]:
        """Undo `pack`.

        Parameters
        ----------
        data : uint8, (matrix_n_bytes(kind.name, rows, k),)
        rows, k : int
            Without padding.

        Returns
        -------
        codes : code_dtype, (rows, k)
        scales : float16, (rows, k / 32 rounded up)

        Raises
        ------
        BadTensorError
            When `data` is not of the size that the shape gives.
        """
        codes, scales = self._split(self.tiles(data, rows, k))
        return np.ascontiguousarray(codes[:rows, :k]), np.ascontiguousarray(scales[:rows])

    def grid(self, data: UInt8, rows: int, k: int) -> Grid:
        """Read the grids of a quantized matrix; see `BlockCodec.grid`."""
        _, halves = self.unpack(data, rows, k)
        scales = np.ascontiguousarray(halves.T).astype(np.float32)
        return Grid(scales, scales * np.float32(-self.least), self.greatest - self.least)

    def with_codes(self, data: UInt8, codes: UInt8) -> UInt8:
        """Store other codes on the same grids; see `BlockCodec.with_codes`."""
        _, scales = self.unpack(data, *codes.shape)
        moved = codes.astype(np.int16) + np.int16(self.least + self.zero_code)
        return self.pack(moved.astype(self.code_dtype), scales)

    def _split(self, tiles: UInt8) -> tuple[npt.NDArray[Any], Float16]:
        blocks = tiles.reshape(len(tiles), -1, self.kind.tile_block_n_bytes)
        n_code_bytes = self.kind.tile_block_n_bytes - 2 * TILE_ROWS
        scales = np.ascontiguousarray(blocks[:, :, n_code_bytes:]).view("<f2")
        codes = self._codes_from_bytes(blocks[:, :, :n_code_bytes])
        return codes, untile_per_block(scales).astype(np.float16)

    def _encode(self, w: Float32, h: Float32 | None, fast: bool) -> UInt8:
        blocks = w.reshape(-1, BLOCK)
        columns = np.ones(w.shape[1], np.float32) if h is None else h
        codes, scales = self.encode_blocks(blocks, blocks_of_columns(columns, len(w)), fast)
        return self.pack(codes.reshape(w.shape), scales.reshape(len(w), -1))

    def _decode(self, tiles: UInt8) -> Float32:
        codes, scales = self._split(tiles)
        values: Float32 = codes.astype(np.float32) - np.float32(self.zero_code)
        by_block = values.reshape(len(codes), -1, BLOCK)
        by_block *= scales.astype(np.float32)[:, :, None]
        return values
