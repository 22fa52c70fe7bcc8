"""What running a model takes beside its weights, before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qllama.config import ModelConfig
from qllama.kernels.weight_kernels import WEIGHT_KERNELS
from qllama.model.attention_plan import AttentionPlan
from qllama.model.buffers import StepMemory
from qllama.model.kv_cache import KvLayout

__all__ = ["Footprint"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that an engine reserves; the system commits them as they are used.

    Parameters
    ----------
    kv_n_bytes : int
        Keys and values.
    buffers_n_bytes : int
        What a step works in.
    """

    kv_n_bytes: int
    buffers_n_bytes: int

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        weight_types: Iterable[str],
        *,
        n_ctx: int,
        n_threads: int,
        n_batch: int = 512,
        kv_type: str = "f16",
    ) -> Footprint:
        """Count what `Engine` would reserve for one sequence.

        Parameters
        ----------
        config : ModelConfig
        weight_types : iterable of str
            Of the matrices.
        n_ctx, n_threads, n_batch, kv_type
            As `Engine` takes them, and not 0 or None.
        """
        types = set(weight_types)
        layout = KvLayout(config, n_ctx, 1, kv_type)
        plan = AttentionPlan(
            n_kv_heads=config.num_key_value_heads,
            repeats=config.num_attention_heads // config.num_key_value_heads,
            sliding_window=config.sliding_window,
            capacity=layout.capacity,
            n_threads=n_threads,
        )
        packings = {kernel.activation for kernel in WEIGHT_KERNELS if kernel.name in types}
        memory = StepMemory(config, packings, layout, plan, min(n_batch, n_ctx))
        return cls(layout.n_bytes, sum(memory.pieces.values()))
