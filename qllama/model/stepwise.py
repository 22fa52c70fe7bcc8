"""The forward pass stage by stage, shown to an observer who may change it.

A layer of which nothing is wanted runs at one go, as ever. Attention never holds its
scores: where they are wanted they are computed here, from the queries and keys that
the compiled attention reads, and a change of them replaces its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig
from qllama.kernels import reference as ops
from qllama.kernels.kv_layout import Q8
from qllama.kernels.team import ThreadTeam
from qllama.model import stages as stage
from qllama.model.activations import Activation, Observer
from qllama.model.arena import Arena
from qllama.model.batch import Batch
from qllama.model.buffers import Buffers
from qllama.model.decoder import decoder
from qllama.model.kv_cache import KvCache
from qllama.model.records import STAGE
from qllama.quant.types import BLOCK

__all__ = ["Stepwise"]

_F32 = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int32]


class _Part(NamedTuple):
    """Rows of a batch that belong to one text."""

    slot: int
    rows: npt.NDArray[np.intp]
    positions: _Ids


class Stepwise:
    """Evaluates batches of an engine for an observer.

    Parameters
    ----------
    config : ModelConfig
    buffers : Buffers
    cache : KvCache
    team : ThreadTeam
    step : STEP records, (1,)
        The engine's; its batch is filled in before a call.
    observer : Observer
    """

    def __init__(
        self,
        config: ModelConfig,
        buffers: Buffers,
        cache: KvCache,
        team: ThreadTeam,
        step: npt.NDArray[Any],
        observer: Observer,
    ) -> None:
        self._config = config
        self._buffers = buffers
        self._cache = cache
        self._team = team
        self._step = step
        self._observer = observer
        self._hidden = int(buffers.model[0]["hidden_padded"])
        self._mlp = BLOCK * int(buffers.model[0]["intermediate_blocks"])
        self._columns = {"rows": self._hidden, "product": self._hidden}
        self._columns |= {"gates": self._mlp, "ups": self._mlp}
        self._arena = Arena()
        for name, n_columns in self._columns.items():
            self._arena.reserve(name, 4 * n_columns * buffers.n_batch)
        self._addresses = self._arena.allocate()
        self._addresses["residual"] = int(buffers.model[0]["residual"])
        self._stages = stage.stages().address
        self._call = np.zeros(1, STAGE)
        self._call["step"] = step.ctypes.data
        layers = range(config.num_hidden_layers)
        self._is_watched = [
            any(name.startswith(f"layers.{i}.") for name in observer.names) for i in layers
        ]
        # What stands beside them is computed with them.
        self._is_watched[0] |= "embed_tokens.output" in observer.names
        self._is_watched[-1] |= "norm.output" in observer.names

    def run(
        self,
        batch: Batch,
        positions: _Ids,
        slots: _Ids,
        outputs: Sequence[int],
        n_together: int,
        check: Callable[[], None] | None,
    ) -> None:
        """Evaluate a batch.

        Parameters
        ----------
        batch : Batch
            What the engine's step record points to; its logits are filled in.
        positions, slots : int32, (n_tokens,)
        outputs : sequence of int
            As the batch was made of.
        n_together : int
            Layers to evaluate in one call, at most, where nothing is wanted of them.
        check : callable, optional
            Called between the calls.
        """
        n_tokens, n_outputs = len(positions), len(outputs)
        self._parts = _parts(slots, positions)
        self._view(n_tokens)
        first = 0
        while first < len(self._is_watched):
            if check is not None:
                check()
            end = first + 1
            if self._is_watched[first]:
                self._layer(first)
            else:
                while end < first + n_together and self._is_watched[end : end + 1] == [False]:
                    end += 1
                self._step["first_layer"], self._step["end_layer"] = first, end
                self._team.run(decoder().address, self._step.ctypes.data)
            first = end
        wanted = np.array(outputs, np.intp)
        self._parts = _parts(slots[wanted], positions[wanted])
        if self._is_watched[-1] and n_outputs:
            self._run(stage.OUTPUT_NORM, out="rows")
            rows = self._arena.floats("rows", n_outputs, self._hidden)
            self._show("norm.output", None, rows[:, : self._config.hidden_size])
            self._run(stage.HEAD, rows="rows")
        self._show("logits", None, batch.logits)

    def _view(self, n_tokens: int) -> None:
        """Look at the buffers' first rows, without the padding of their columns."""
        config, model = self._config, self._buffers.model[0]
        hidden, head_dim = config.hidden_size, config.head_dim

        def heads(rows: _F32, start: int, n: int) -> _F32:
            return rows[:, start : start + n * head_dim].reshape(n_tokens, n, head_dim)

        self._residual = self._buffers.floats("residual", n_tokens)[:, :hidden]
        qkv = self._buffers.floats("qkv", n_tokens)
        n_heads, n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._q = heads(qkv, 0, n_heads)
        self._k = heads(qkv, int(model["k_column"]), n_kv_heads)
        self._v = heads(qkv, int(model["v_column"]), n_kv_heads)
        self._attended = heads(self._buffers.floats("attended", n_tokens), 0, n_heads)
        self._normed, self._product = (
            self._arena.floats(name, n_tokens, self._hidden)[:, :hidden]
            for name in ("rows", "product")
        )
        self._gates, self._ups = (
            self._arena.floats(name, n_tokens, self._mlp)[:, : config.intermediate_size]
            for name in ("gates", "ups")
        )

    def _layer(self, i: int) -> None:
        if i == 0:
            self._run(stage.EMBED)
            self._show("embed_tokens.output", None, self._residual)
        self._show("input", i, self._residual)
        self._run(stage.ATTENTION_NORM, i, out="rows")
        self._show("self_attn.input", i, self._normed)
        self._run(stage.PROJECT_QKV, i, rows="rows")
        self._show("self_attn.q_proj.output", i, self._q)
        self._show("self_attn.k_proj.output", i, self._k)
        self._show("self_attn.v_proj.output", i, self._v)
        self._run(stage.ROTATE, i)
        self._show("self_attn.q", i, self._q)
        self._show("self_attn.k", i, self._k)
        self._run(stage.APPEND, i)
        self._run(stage.ATTEND, i)
        self._show_attention(i)
        self._show("self_attn.o_proj.input", i, self._attended)
        self._add(stage.PROJECT_O, "self_attn.output", i)
        self._show("post_attention_layernorm.input", i, self._residual)
        self._run(stage.MLP_NORM, i, out="rows")
        self._show("mlp.input", i, self._normed)
        self._run(stage.PROJECT_GATE_UP, i, rows="rows", out="gates", second_out="ups")
        self._show("mlp.gate_proj.output", i, self._gates)
        self._show("mlp.up_proj.output", i, self._ups)
        self._run(stage.SWIGLU, i, rows="gates", second_rows="ups", out="gates")
        self._show("mlp.down_proj.input", i, self._gates)
        self._add(stage.PROJECT_DOWN, "mlp.output", i, rows="gates")
        self._show("output", i, self._residual)

    def _run(self, number: int, layer: int = 0, *, accumulate: int = 0, **places: str) -> None:
        """Run a stage; `places` are the record's addresses, by name of a buffer."""
        call = self._call[0]
        call["stage"], call["layer"], call["accumulate"] = number, layer, accumulate
        for field, name in places.items():
            call[field] = self._addresses[name]
        self._team.run(self._stages, self._call.ctypes.data)

    def _show(self, name: str, layer: int | None, rows: _F32) -> None:
        """Have the observer see rows of the batch, float32 (n_rows, ...), and change them."""
        for part in self._parts:
            after = self._visit(name, layer, part, rows)
            if after is not None:
                rows[part.rows] = after

    def _visit(self, name: str, layer: int | None, part: _Part, rows: _F32) -> _F32 | None:
        """Return what the observer makes of one text's rows."""
        if (name := _full(name, layer)) not in self._observer.names:
            return None
        at = Activation(name, layer, part.positions, part.slot)
        return self._observer.visit(at, rows[part.rows])

    def _add(self, number: int, name: str, layer: int, rows: str = "rows") -> None:
        """Add a product to the residual stream; what the observer changes of it, instead.

        The addition is part of the product, so the product alone is computed anew.
        """
        if _full(name, layer) not in self._observer.names:
            self._run(number, layer, rows=rows, out="residual", accumulate=1)
            return
        self._run(number, layer, rows=rows, out="product")
        before = self._residual.copy()
        self._run(number, layer, rows=rows, out="residual", accumulate=1)
        for part in self._parts:
            after = self._visit(name, layer, part, self._product)
            if after is not None:
                changed = (after != self._product[part.rows]).any(axis=1)
                places = part.rows[changed]
                self._residual[places] = before[places] + after[changed]

    def _show_attention(self, layer: int) -> None:
        names = [_full(name, layer) for name in ("self_attn.scores", "self_attn.weights")]
        if not self._observer.names.intersection(names):
            return
        for part in self._parts:
            n_positions = int(part.positions[-1]) + 1
            keys, values = self._cache.floats(layer, part.slot, n_positions)
            head_dim = self._config.head_dim
            scores = self._scores(self._q[part.rows], keys[..., :head_dim], part.positions)
            own = ops.softmax(scores)
            weights = own
            for name in names:
                if name not in self._observer.names:
                    continue
                given = scores if name.endswith("scores") else weights
                at = Activation(name, layer, part.positions, part.slot)
                after = self._observer.visit(at, given.copy())
                if after is not None:
                    weights = ops.softmax(after) if given is scores else after
            changed = (weights != own).any(axis=-1).T  # (n_tokens, n_heads)
            if changed.any():
                grouped = weights.reshape(len(values), -1, n_positions)
                sums = (grouped @ values[..., :head_dim]).reshape(*weights.shape[:2], head_dim)
                attended = self._attended[part.rows]
                attended[changed] = sums.swapaxes(0, 1)[changed]
                self._attended[part.rows] = attended

    def _scores(self, q: _F32, keys: _F32, positions: _Ids) -> _F32:
        """Scores of one text's queries, as the compiled attention has them before its softmax.

        Parameters
        ----------
        q : float32, (n_tokens, n_heads, head_dim)
        keys : float32, (n_kv_heads, n_positions, head_dim)
            As the cache holds them.
        positions : int32, (n_tokens,)

        Returns
        -------
        float32, (n_heads, n_tokens, n_positions)
            -inf where a query does not see.
        """
        n_tokens, n_heads, head_dim = q.shape
        n_kv_heads, n_positions, _ = keys.shape
        scaled = q * self._buffers.model[0]["attention_scale"]
        if self._cache.kv_type == Q8:  # the kernel multiplies integers
            padded = np.pad(scaled, ((0, 0), (0, 0), (0, -head_dim % BLOCK)))
            rows = padded.reshape(n_tokens * n_heads, -1)
            rounded = ops.dequantize_activations(*ops.quantize_activations(rows))
            scaled = rounded.reshape(padded.shape)[..., :head_dim]
        grouped = scaled.swapaxes(0, 1).reshape(n_kv_heads, -1, head_dim)
        scores: _F32 = grouped @ keys.swapaxes(1, 2)
        scores = scores.reshape(n_heads, n_tokens, n_positions)
        places, last = np.arange(n_positions), positions[:, None]
        window = self._config.sliding_window or n_positions
        scores[:, (places > last) | (places <= last - window)] = -np.inf
        return scores


def _full(name: str, layer: int | None) -> str:
    return name if layer is None else f"layers.{layer}.{name}"


def _parts(slots: _Ids, positions: _Ids) -> list[_Part]:
    """Split rows by the text that they belong to, each in the order of its positions."""
    parts = []
    for slot in dict.fromkeys(slots.tolist()):
        (rows,) = np.nonzero(slots == slot)
        rows = rows[np.argsort(positions[rows], kind="stable")]
        parts.append(_Part(slot, rows, positions[rows]))
    return parts
