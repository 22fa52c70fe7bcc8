"""One step's tokens, as the record that the compiled forward pass reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig
from qllama.kernels.attention import CHUNK
from qllama.model.records import BATCH
from qllama.model.rotary import RotaryTable
from qllama.model.self_attention import QUERIES_PER_GROUP
from qllama.quant.types import TILE_ROWS

__all__ = ["MAX_SPLIT_TOKENS", "Batch"]

#: Attention is split over threads by chunk of positions for batches up to this size;
#: larger ones have enough queries to share out.
MAX_SPLIT_TOKENS = 8


class Batch:
    """A ragged batch; `Engine.forward` says what the arguments are and checks them.

    Attributes
    ----------
    record : BATCH records, (1,)
        Points into arrays that live as long as this object.
    logits : float32, (len(outputs), vocab_size)
    """

    def __init__(
        self,
        config: ModelConfig,
        rotary: RotaryTable,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        outputs: Sequence[int],
    ) -> None:
        columns = -(-config.vocab_size // TILE_ROWS) * TILE_ROWS
        logits = np.empty((len(outputs), columns), np.float32)
        self.logits = logits[:, : config.vocab_size]
        repeats = config.num_attention_heads // config.num_key_value_heads
        groups = _query_groups(slots, max(1, QUERIES_PER_GROUP // repeats))
        n_chunks = int(positions.max()) // CHUNK + 1
        split = len(tokens) <= MAX_SPLIT_TOKENS and n_chunks > 1
        cos, sin = rotary(positions)
        arrays = [
            np.ascontiguousarray(a, np.int32) for a in (tokens, positions, slots, groups, outputs)
        ]
        self._kept_alive = (*arrays, cos, sin, logits)
        token_ids, places, slot_ids, group_pairs, wanted = (a.ctypes.data for a in arrays)
        self.record = np.zeros(1, BATCH)
        self.record[0] = (
            len(tokens),
            token_ids,
            places,
            slot_ids,
            cos.ctypes.data,
            sin.ctypes.data,
            len(groups),
            group_pairs,
            len(outputs),
            wanted,
            logits.ctypes.data,
            columns,
            n_chunks if split else 0,
        )


def _query_groups(slots: npt.NDArray[np.int32], size: int) -> list[tuple[int, int]]:
    """Runs of at most `size` tokens of one slot, as (first token, count)."""
    edges = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]
    return [
        (first, min(size, end - first))
        for start, end in pairwise(edges)
        for first in range(start, end, size)
    ]
