"""Keys and values of every sequence in flight.

Memory is committed by the operating system as positions are written.
"""

from __future__ import annotations

from qllama.config import ModelConfig
from qllama.errors import ContextLengthError
from qllama.kernels.kv_layout import CHUNK, KV_TYPES, chunk_bytes
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
        self.head_bytes = self.capacity // CHUNK * chunk_bytes(self.kv_type, self.head_size)
        self.slot_bytes = self.head_bytes * config.num_key_value_heads
        self.layer_bytes = self.slot_bytes * n_slots
        self.n_bytes = 2 * self.layer_bytes * config.num_hidden_layers


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
