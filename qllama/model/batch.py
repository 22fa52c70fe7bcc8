"""One step's tokens, as the record that the compiled forward pass reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig
from qllama.model.attention_plan import AttentionPlan
from qllama.model.records import BATCH
from qllama.model.rotary import RotaryTable
from qllama.quant.types import TILE_ROWS

__all__ = ["Batch"]


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
        plan: AttentionPlan,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        outputs: Sequence[int],
    ) -> None:
        columns = -(-config.vocab_size // TILE_ROWS) * TILE_ROWS
        logits = np.empty((len(outputs), columns), np.float32)
        self.logits = logits[:, : config.vocab_size]
        tasks = plan.tasks(positions.tolist(), slots.tolist())
        cos, sin = rotary(positions)
        arrays = [
            np.ascontiguousarray(a, np.int32) for a in (tokens, positions, slots, tasks, outputs)
        ]
        self._kept_alive = (*arrays, cos, sin, logits)
        token_ids, places, slot_ids, task_records, wanted = (a.ctypes.data for a in arrays)
        self.record = np.zeros(1, BATCH)
        self.record[0] = (
            len(tokens),
            token_ids,
            places,
            slot_ids,
            cos.ctypes.data,
            sin.ctypes.data,
            len(tasks),
            task_records,
            len(outputs),
            wanted,
            logits.ctypes.data,
            columns,
        )
