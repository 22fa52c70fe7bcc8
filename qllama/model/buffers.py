"""The memory that a step works in, and the record that says where it is."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig
from qllama.kernels.kv_layout import Q8
from qllama.kernels.linear import linear, scratch_bytes
from qllama.kernels.partials import partial_bytes
from qllama.kernels.team import ThreadTeam
from qllama.kernels.weight_kernels import Q8_BYTES
from qllama.model.arena import Arena
from qllama.model.attention_plan import AttentionPlan
from qllama.model.kv_cache import KvCache, KvLayout
from qllama.model.records import MODEL
from qllama.model.self_attention import attention_scratch_bytes
from qllama.model.weights import Weights
from qllama.quant.types import BLOCK, TILE_ROWS

__all__ = ["Buffers", "StepMemory"]

_FLOAT = 4
_NO_WINDOW = 2**62


def _padded(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class StepMemory:
    """What a step of up to `n_batch` tokens works in, before any of it is allocated.

    Parameters
    ----------
    config : ModelConfig
    packings : set of str
        As `Weights` has them.
    layout : KvLayout
    plan : AttentionPlan
    n_batch : int

    Attributes
    ----------
    hidden, attention, mlp : int
        Padded widths of the activations.
    q_columns, kv_columns : int
        Padded outputs of the projections.
    scratch, unpacked : int
        Bytes of these pieces that each thread has for itself.
    floats : dict of str to int
        Name to bytes of what holds activations packed as float32.
    pieces : dict of str to int
        Name to bytes of everything, without `floats` where no matrix reads them.
    """

    def __init__(
        self,
        config: ModelConfig,
        packings: set[str],
        layout: KvLayout,
        plan: AttentionPlan,
        n_batch: int,
    ) -> None:
        self.hidden = hidden = _padded(config.hidden_size, BLOCK)
        self.attention = attention = _padded(config.q_dim, BLOCK)
        self.mlp = mlp = _padded(config.intermediate_size, BLOCK)
        self.q_columns, self.kv_columns = (
            _padded(n, TILE_ROWS) for n in (config.q_dim, config.kv_dim)
        )
        scratch = max(
            _FLOAT * hidden,
            2 * _FLOAT * BLOCK * n_batch,
            attention_scratch_bytes(plan.max_queries, layout.head_size),
        )
        self.scratch = _padded(scratch, 128)
        # Twice the tokens: the output head reads each in two parts.
        self.unpacked = _padded(scratch_bytes(2 * n_batch), 128)
        n_rows = max(n_batch, plan.n_threads)  # a lone token has one for every thread
        needs_q8 = "q8" in packings
        self.floats = {
            "packed_f32": _FLOAT * self.widest * n_rows,
            "hidden_f32": _FLOAT * mlp * n_batch,
        }
        self.pieces = {
            "residual": _FLOAT * hidden * n_batch,
            "qkv": _FLOAT * self.qkv_columns * n_batch,
            "attended": _FLOAT * attention * n_batch,
            "partials": partial_bytes(layout.head_size) * plan.max_partials,
            "arrivals": 8 * plan.max_arrivals,
            "packed_q8": needs_q8 * 2 * Q8_BYTES * self.widest // BLOCK * n_rows,
            "hidden_q8": needs_q8 * Q8_BYTES * mlp // BLOCK * n_batch,
            **{name: ("f32" in packings) * n_bytes for name, n_bytes in self.floats.items()},
            "scratch": self.scratch * plan.n_threads,
            "unpacked": self.unpacked * plan.n_threads,
        }

    @property
    def qkv_columns(self) -> int:
        """Columns of q, k and v of a token, next to each other."""
        return self.q_columns + 2 * self.kv_columns

    @property
    def widest(self) -> int:
        """Columns of the widest activations that are packed."""
        return max(self.hidden, self.attention)


class Buffers:
    """Buffers for batches of up to `n_batch` tokens.

    Attributes
    ----------
    model : MODEL records, (1,)
        Everything that stays the same from step to step.
    n_batch : int
    inner_block_bytes : int
        Of one block of inner activations, `reserve_low_rank`'s, of all tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        cache: KvCache,
        team: ThreadTeam,
        plan: AttentionPlan,
        n_batch: int,
    ) -> None:
        memory = StepMemory(config, weights.packings, cache, plan, n_batch)
        self._arena = Arena()
        for name, n_bytes in memory.pieces.items():
            self._arena.reserve(name, n_bytes)
        addresses = self._arena.allocate()
        self.n_batch = n_batch
        self._arrivals = addresses["arrivals"], 8 * plan.max_arrivals
        self._floats = {} if "f32" in weights.packings else memory.floats
        self.inner_block_bytes = _FLOAT * BLOCK * n_batch
        self._columns = {
            "residual": memory.hidden,
            "qkv": memory.qkv_columns,
            "attended": memory.attention,
        }

        self.model = np.zeros(1, MODEL)
        fields = {
            **addresses,
            "n_layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "hidden_padded": memory.hidden,
            "intermediate_blocks": memory.mlp // BLOCK,
            "n_heads": config.num_attention_heads,
            "n_kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "sliding_window": config.sliding_window or _NO_WINDOW,
            "final_norm": weights.final_norm,
            "k_column": memory.q_columns,
            "v_column": memory.q_columns + memory.kv_columns,
            "qkv_columns": memory.qkv_columns,
            "attention_padded": memory.attention,
            "packed_columns": memory.widest,
            "kv_type": cache.kv_type,
            "keys": cache.keys,
            "values": cache.values,
            "head_size": cache.head_size,
            "head_bytes": cache.head_bytes,
            "slot_bytes": cache.slot_bytes,
            "layer_bytes": cache.layer_bytes,
            "key_kernel": linear("q8_0").address if cache.kv_type == Q8 else 0,
            "scratch_bytes": memory.scratch,
            "unpacked_bytes": memory.unpacked,
            "team": team.state,
            "n_threads": team.n_threads,
            "eps": config.rms_norm_eps,
            "attention_scale": 1.0 / math.sqrt(config.head_dim),
        }
        for name, value in fields.items():
            self.model[0][name] = value
        for kind in ("q8", "f32"):
            if kind not in weights.packings:  # address 0 tells the packing to skip this kind
                self.model[0]["packed_" + kind] = self.model[0]["hidden_" + kind] = 0

    def reserve_low_rank(self, n_blocks: int, packings: Collection[str]) -> int:
        """Have activations packed as float32 too, beside what the matrices read.

        Parameters
        ----------
        n_blocks : int
            Of a token's inner activations, those between the two matrices of an update.
        packings : collection of str
            Which others: `packed_f32`, what the hidden state and attention give, and
            `hidden_f32`, what lies between the feed-forward layer's matrices. Without any
            all of it is taken back.

        Returns
        -------
        int
            Address of the inner ones, float32 (n_blocks, 32) of each token.
        """
        arena = Arena()
        arena.reserve("inner", self.inner_block_bytes * n_blocks)
        wanted = {name: n for name, n in self._floats.items() if name in packings}
        for name, n_bytes in wanted.items():
            arena.reserve(name, n_bytes)
        addresses = arena.allocate() if packings else {}
        for name in self._floats:
            self.model[0][name] = addresses.get(name, 0)
        self._low_rank = arena
        return addresses.get("inner", 0)

    def floats(self, name: str, n_tokens: int) -> npt.NDArray[np.float32]:
        """Return a view of a buffer's first rows.

        Parameters
        ----------
        name : str
            `residual`, `qkv` or `attended`.
        n_tokens : int
            At most `n_batch`.

        Returns
        -------
        float32, (n_tokens, n_columns)
        """
        return self._arena.floats(name, n_tokens, self._columns[name])

    def clear_arrivals(self) -> None:
        """Forget which chunks of split attention are done: of a step that did not end."""
        address, n_bytes = self._arrivals
        ctypes.memset(address, 0, n_bytes)
