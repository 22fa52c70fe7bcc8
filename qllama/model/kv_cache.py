"""Keys and values of every sequence in flight.

Memory is committed by the operating system as positions are written.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig
from qllama.errors import ContextLengthError
from qllama.kernels.kv_layout import CHUNK, KV_TYPES, chunk_bytes
from qllama.kernels.kv_rows import to_floats, to_rows
from qllama.memory import zeroed_pages
from qllama.quant.types import BLOCK

__all__ = ["KvCache", "KvLayout"]


class KvLayout:
    """Where keys and values of `n_slots` sequences of up to `n_ctx` positions go.

    The layout of one head is that of `kernels.kv_layout`; heads follow each other,
    then slots, then layers.

    Parameters
    ----------
    config : ModelConfig
    n_ctx, n_slots : int
    kv_type : str
        One of `KV_TYPES`.

    Attributes
    ----------
    kv_type : int
        Place in `KV_TYPES`.
    capacity : int
        Positions of a head, `n_ctx` rounded up to a multiple of the attention's chunk.
    head_size : int
        head_dim rounded up to a multiple of 32.
    n_layers, n_kv_heads : int
        The model's.
    chunk_bytes : int
        Of a head's chunk of keys, or of values.
    head_bytes, slot_bytes, layer_bytes : int
        From one head, slot or layer to the next.
    n_bytes : int
        Of all keys and values.

    Raises
    ------
    ValueError
        When there is no such type.
    """

    def __init__(self, config: ModelConfig, n_ctx: int, n_slots: int, kv_type: str = "f16") -> None:
        if kv_type not in KV_TYPES:
            raise ValueError(f"kv_type: expected one of {', '.join(KV_TYPES)}, found {kv_type!r}")
        self.kv_type = KV_TYPES.index(kv_type)
        self.capacity = -(-n_ctx // CHUNK) * CHUNK
        self.head_size = -(-config.head_dim // BLOCK) * BLOCK
        self.n_layers = config.num_hidden_layers
        self.n_kv_heads = config.num_key_value_heads
        self.chunk_bytes = chunk_bytes(self.kv_type, self.head_size)
        self.head_bytes = self.capacity // CHUNK * self.chunk_bytes
        self.slot_bytes = self.head_bytes * self.n_kv_heads
        self.layer_bytes = self.slot_bytes * n_slots
        self.n_bytes = 2 * self.layer_bytes * self.n_layers

    def bytes_of(self, n_positions: int) -> int:
        """Bytes of the keys and values of so many positions of a slot, in whole chunks."""
        n_chunks = -(-n_positions // CHUNK)
        n_bytes: int = 2 * self.n_layers * self.n_kv_heads * n_chunks * self.chunk_bytes
        return n_bytes


class KvCache(KvLayout):
    """The memory of a layout, zeroed.

    Parameters
    ----------
    config, n_ctx, n_slots, kv_type
        As `KvLayout` takes them.

    Attributes
    ----------
    keys, values : int
        Addresses of the first head.

    Raises
    ------
    ContextLengthError
        When the memory cannot be reserved.
    ValueError
        When there is no such type.
    """

    def __init__(self, config: ModelConfig, n_ctx: int, n_slots: int, kv_type: str = "f16") -> None:
        super().__init__(config, n_ctx, n_slots, kv_type)
        try:
            self._keys, self._values = (zeroed_pages(self.n_bytes // 2) for _ in range(2))
        except MemoryError:
            raise ContextLengthError(
                f"context of {n_ctx} tokens: its key/value cache takes {self.n_bytes / 2**20:.0f} "
                "MiB, more than this machine grants; choose a smaller n_ctx"
            ) from None
        self.keys, self.values = self._keys.ctypes.data, self._values.ctypes.data
        self._n_slots = n_slots

    def read(self, slot: int, n_positions: int) -> npt.NDArray[np.uint8]:
        """Copy the first positions of a slot, in whole chunks.

        Parameters
        ----------
        slot, n_positions : int
            Within the cache.

        Returns
        -------
        uint8, (2, n_layers, n_kv_heads, n_chunks, chunk_bytes)
            Keys, then values. Positions past `n_positions` in the last chunk are whatever
            the slot holds there.
        """
        n_chunks = -(-n_positions // CHUNK)
        return np.stack([x[:, slot, :, :n_chunks] for x in self._by_chunk()])

    def floats(self, layer: int, slot: int, n_positions: int) -> npt.NDArray[np.float32]:
        """Return the first keys and values of a slot in one layer, as attention reads them.

        Parameters
        ----------
        layer, slot, n_positions : int
            Within the cache.

        Returns
        -------
        float32, (2, n_kv_heads, n_positions, head_size)
        """
        n_chunks = -(-n_positions // CHUNK)
        chunks = np.stack([x[layer : layer + 1, slot, :, :n_chunks] for x in self._by_chunk()])
        rows = to_rows(chunks, self.kv_type, self.head_size, n_positions)
        return to_floats(rows, self.kv_type, self.head_size)[:, 0]

    def write(self, slot: int, chunks: npt.NDArray[np.uint8]) -> None:
        """Fill the first positions of a slot.

        Parameters
        ----------
        slot : int
            Within the cache.
        chunks : uint8, (2, n_layers, n_kv_heads, n_chunks, chunk_bytes)
            As `read` returned them.

        Raises
        ------
        ValueError
            When they are not of this shape, or more than the slot has.
        """
        n_chunks = chunks.shape[3] if chunks.ndim == 5 else 0
        expected = (2, self.n_layers, self.n_kv_heads, n_chunks, self.chunk_bytes)
        if chunks.shape != expected or n_chunks * CHUNK > self.capacity:
            raise ValueError(
                f"cache: expected keys and values of shape {expected} and at most "
                f"{self.capacity // CHUNK} chunks, found {chunks.shape}"
            )
        for memory, kind in zip(self._by_chunk(), chunks, strict=True):
            memory[:, slot, :, :n_chunks] = kind

    def _by_chunk(self) -> list[npt.NDArray[np.uint8]]:
        """Return keys and values, (n_layers, n_slots, n_kv_heads, n_chunks, chunk_bytes) each."""
        shape = (self.n_layers, self._n_slots, self.n_kv_heads, -1, self.chunk_bytes)
        return [memory.reshape(shape) for memory in (self._keys, self._values)]
