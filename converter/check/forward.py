"""A forward pass in float32 whose memory is a few slabs of weights and the tokens' states.

Owns the order of a layer's operations, for several texts at once: weights are decoded
once for all of them. Each text may be read with a rotary embedding of its own. It shares
no code with the compiled pass but the definitions in `kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from converter.check.weights import Weights, of_any_weights, on_own_threads
from converter.sources.views import interleaved_to_half_split
from qllama.config import ModelConfig
from qllama.kernels import reference as ops
from qllama.model.rotary import RotaryTable
from qllama.tensors import EMBEDDING, FINAL_NORM, HEAD, ROPE_DIVISORS

__all__ = ["Reading", "Text", "hidden_states", "losses"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reading:
    """How positions enter a model's queries and keys.

    Parameters
    ----------
    rope_theta : float
    rows : str
        What becomes of the rows of q and k in a head: `kept`, `from interleaved` (put in
        order as if they were interleaved) or `to interleaved` (the opposite).
    scaled : bool
        Whether frequencies are stretched as the config's `rope_scaling` says.
    """

    rope_theta: float
    rows: str = "kept"
    scaled: bool = True

    def ordered(self, x: F32, head_dim: int) -> F32:
        """Reorder the outputs of q or k.

        Parameters
        ----------
        x : float32, (n, rows)
        head_dim : int

        Returns
        -------
        float32, (n, rows)
        """
        if self.rows == "kept":
            return x
        order = interleaved_to_half_split(x.shape[1], head_dim)
        return x[:, order if self.rows == "from interleaved" else np.argsort(order)]

    def table(self, config: ModelConfig, divisors: F32 | None) -> RotaryTable:
        """Rotary table with this base.

        Parameters
        ----------
        config : ModelConfig
        divisors : float32, (head_dim / 2,), or None
            As `RotaryTable` takes them.
        """
        scaling = config.rope_scaling if self.scaled else None
        read = replace(config, rope_theta=self.rope_theta, rope_scaling=scaling)
        return RotaryTable(read, divisors)


@dataclass(frozen=True)
class Text:
    """Tokens at ascending positions, which may leave some out, and how to read them.

    Parameters
    ----------
    tokens, positions : sequence of int
    reading : Reading
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    reading: Reading


@on_own_threads
@of_any_weights
def hidden_states(
    weights: Weights,
    texts: Sequence[Text],
    n_layers: int,
    on_layer: Callable[[int, int], None],
) -> list[F32]:
    """States of all tokens after the first layers; a token sees those before it of its text.

    Parameters
    ----------
    weights : Weights
    texts : sequence of Text
    n_layers : int
    on_layer : callable
        Told of layers done, and of how many.

    Returns
    -------
    list of float32, (tokens of the text, hidden_size)
    """
    config = weights.config
    divisors = weights.vector(ROPE_DIVISORS) if ROPE_DIVISORS in weights.shapes else None
    ends = np.cumsum([len(text.tokens) for text in texts])
    spans = [slice(end - len(text.tokens), end) for end, text in zip(ends, texts, strict=True)]
    turns = [
        text.reading.table(config, divisors)(np.asarray(text.positions, np.int64)) for text in texts
    ]

    def normed(x: F32, name: str) -> F32:
        return ops.rms_norm(x, weights.vector(name + ".weight"), config.rms_norm_eps)

    def heads(x: F32, norm: str, text: Text, turn: tuple[F32, F32]) -> F32:
        x = text.reading.ordered(x, config.head_dim).reshape(len(x), -1, config.head_dim)
        return ops.rope(normed(x, norm) if config.qk_norm else x, *turn)

    x = weights.rows(EMBEDDING, [token for text in texts for token in text.tokens])
    for i in range(n_layers):
        on_layer(i, n_layers)
        layer = f"model.layers.{i}."
        attention = layer + "self_attn."
        n = normed(x, layer + "input_layernorm")
        q, k, v = (weights.linear(n, attention + name) for name in ("q_proj", "k_proj", "v_proj"))
        attended = np.empty_like(q)
        for text, span, turn in zip(texts, spans, turns, strict=True):
            seen = ops.attention(
                heads(q[span], attention + "q_norm", text, turn),
                heads(k[span], attention + "k_norm", text, turn),
                v[span].reshape(len(text.tokens), -1, config.head_dim),
                np.arange(len(text.tokens)),
                config.sliding_window,
            )
            attended[span] = seen.reshape(len(text.tokens), -1)
        x = x + weights.linear(attended, attention + "o_proj")
        n = normed(x, layer + "post_attention_layernorm")
        gate, up = (weights.linear(n, layer + f"mlp.{name}_proj") for name in ("gate", "up"))
        x = x + weights.linear(ops.swiglu(gate, up), layer + "mlp.down_proj")
    on_layer(n_layers, n_layers)
    return [x[span] for span in spans]


@on_own_threads
@of_any_weights
def losses(weights: Weights, states: F32, targets: Sequence[int]) -> npt.NDArray[np.float64]:
    """How unlikely the model finds tokens, in nats.

    Parameters
    ----------
    weights : Weights
    states : float32, (n, hidden_size)
        After the last layer.
    targets : sequence of int, (n,)
        The token that follows each.

    Returns
    -------
    float64, (n,)
    """
    config = weights.config
    x = ops.rms_norm(states, weights.vector(FINAL_NORM), config.rms_norm_eps)
    wanted, ids = np.empty(len(x)), np.asarray(targets)
    peak, total = np.full(len(x), -np.inf, np.float32), np.zeros(len(x))
    for first, w in weights.slabs(EMBEDDING if config.tie_word_embeddings else HEAD):
        logits = x @ w.T
        before, peak = peak, np.maximum(peak, logits.max(1))
        here = np.exp(logits - peak[:, None], dtype=np.float32).sum(1, dtype=np.float64)
        total = total * np.exp(before - peak) + here
        inside = np.flatnonzero((ids >= first) & (ids < first + len(w)))
        wanted[inside] = logits[inside, ids[inside] - first]
    loss: npt.NDArray[np.float64] = peak + np.log(total) - wanted
    return loss
