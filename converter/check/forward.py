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

__all__ = ["ForwardPass", "Reading", "Text", "hidden_states", "losses"]

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
    reading = ForwardPass(weights, texts)
    x = reading.embedded()
    for i in range(n_layers):
        on_layer(i, n_layers)
        x = reading.after_layer(i, x)
    on_layer(n_layers, n_layers)
    return [x[span] for span in reading.spans]


class ForwardPass:
    """The layers of a model, one after another, for several texts at once.

    Parameters
    ----------
    weights : Weights
    texts : sequence of Text

    Attributes
    ----------
    spans : list of slice
        Where the tokens of each text stand among all.
    """

    def __init__(self, weights: Weights, texts: Sequence[Text]) -> None:
        self._weights, self._texts = weights, texts
        config = weights.config
        divisors = weights.vector(ROPE_DIVISORS) if ROPE_DIVISORS in weights.shapes else None
        ends = np.cumsum([len(text.tokens) for text in texts])
        self.spans = [
            slice(end - len(text.tokens), end) for end, text in zip(ends, texts, strict=True)
        ]
        self._turns = [
            text.reading.table(config, divisors)(np.asarray(text.positions, np.int64))
            for text in texts
        ]

    def embedded(self) -> F32:
        """States before the first layer, float32 (tokens, hidden_size)."""
        return self._weights.rows(EMBEDDING, [t for text in self._texts for t in text.tokens])

    @of_any_weights
    def after_layer(self, index: int, x: F32) -> F32:
        """States after a layer.

        Parameters
        ----------
        index : int
            Of the layer.
        x : float32, (tokens, hidden_size)
            States before it.

        Returns
        -------
        float32, (tokens, hidden_size)
        """
        weights, layer = self._weights, f"model.layers.{index}."
        x = x + self._attended(self._normed(x, layer + "input_layernorm"), layer + "self_attn.")
        n = self._normed(x, layer + "post_attention_layernorm")
        gate, up = (weights.linear(n, layer + f"mlp.{name}_proj") for name in ("gate", "up"))
        return x + weights.linear(ops.swiglu(gate, up), layer + "mlp.down_proj")

    def _attended(self, n: F32, attention: str) -> F32:
        weights, config = self._weights, self._weights.config
        q, k, v = (weights.linear(n, attention + name) for name in ("q_proj", "k_proj", "v_proj"))
        attended = np.empty_like(q)
        for text, span, turn in zip(self._texts, self.spans, self._turns, strict=True):
            seen = ops.attention(
                self._heads(q[span], attention + "q_norm", text, turn),
                self._heads(k[span], attention + "k_norm", text, turn),
                v[span].reshape(len(text.tokens), -1, config.head_dim),
                np.arange(len(text.tokens)),
                config.sliding_window,
            )
            attended[span] = seen.reshape(len(text.tokens), -1)
        return weights.linear(attended, attention + "o_proj")

    def _normed(self, x: F32, name: str) -> F32:
        norm = self._weights.vector(name + ".weight")
        return ops.rms_norm(x, norm, self._weights.config.rms_norm_eps)

    def _heads(self, x: F32, norm: str, text: Text, turn: tuple[F32, F32]) -> F32:
        config = self._weights.config
        x = text.reading.ordered(x, config.head_dim).reshape(len(x), -1, config.head_dim)
        return ops.rope(self._normed(x, norm) if config.qk_norm else x, *turn)


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
