"""One step's tokens, as the record that the compiled forward pass reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig
from qllama.model.attention_plan import AttentionPlan
from qllama.model.records import BATCH
from qllama.model.rotary import RotaryTable
from qllama.quant.types import TILE_ROWS

__all__ = ["Batch", "check_order", "check_range"]


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


def check_order(positions: npt.NDArray[np.int32], slots: npt.NDArray[np.int32]) -> None:
    """Refuse what attention would cut wrongly: it takes a slot's last token for its longest.

    Parameters
    ----------
    positions, slots : int32, (n_tokens,)

    Raises
    ------
    ValueError
        When tokens of a slot are apart, or not in ascending positions.
    """
    expected = "batch: expected the tokens of one slot together, in ascending positions; found"
    is_same = slots[1:] == slots[:-1]
    if len(slots) - np.count_nonzero(is_same) > len(set(slots.tolist())):
        raise ValueError(f"{expected} other slots between those of one")
    (places,) = np.nonzero(is_same & (np.diff(positions) <= 0))
    if places.size:
        before, after = positions[places[0] :][:2]
        raise ValueError(f"{expected} {after} after {before} in slot {slots[places[0]]}")


def check_range(what: str, values: npt.NDArray[Any], end: int) -> None:
    """Refuse anything but integers 0 .. end - 1; Python's large ones are objects.

    Parameters
    ----------
    what : str
        Named in the error.
    values : int, (n,)
    end : int

    Raises
    ------
    ValueError
    """
    if values.ndim != 1 or values.dtype.kind not in "iuO":
        raise ValueError(f"{what}: expected integers, found {values.dtype} {values.shape}")
    outside = (values < 0) | (values >= end)
    if outside.any():
        raise ValueError(f"{what}: expected 0 to {end - 1}, found {values[outside][0]}")
