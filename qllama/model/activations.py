"""The activations of a model: their names, where they come in a forward pass, their shapes.

A name is that of a module in Hugging Face's modeling_llama, without the leading
`model.`, and `.input` or `.output`, as in baukit and nnsight. Attention has four more that
are no module's: `q` and `k` (normed, if the model does that, and rotated), `scores`
and `weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig

__all__ = ["N_POSITIONS", "N_TOKENS", "Activation", "Observer", "activation_shapes"]

#: Sizes that differ from text to text: its tokens, and the positions that they may see.
N_TOKENS, N_POSITIONS = "n_tokens", "n_positions"


@dataclass(frozen=True)
class Activation:
    """Which activation a hook is given.

    Parameters
    ----------
    name : str
    layer : int or None
    positions : int32, (n_tokens,)
        Places of its tokens in their text, ascending.
    slot : int
        Which text it is, where several are evaluated together.
    """

    name: str
    layer: int | None
    positions: npt.NDArray[np.int32]
    slot: int


#: Given an activation and its values, float32 of a shape of `activation_shapes`, an
#: array of its own. Returns what the pass goes on with, or None to leave it as it was.
Visit: TypeAlias = Callable[[Activation, npt.NDArray[np.float32]], "npt.NDArray[np.float32] | None"]


@dataclass(frozen=True)
class Observer:
    """Who looks on while a model is evaluated.

    Parameters
    ----------
    names : frozenset of str
        The activations that are wanted.
    visit : callable
        See `Visit`.
    """

    names: frozenset[str]
    visit: Visit


def activation_shapes(config: ModelConfig) -> dict[str, tuple[int | str, ...]]:
    """Return the shape of every activation, in the order of the forward pass.

    Parameters
    ----------
    config : ModelConfig

    Returns
    -------
    dict of str to tuple
        Sizes are numbers, or `N_TOKENS` and `N_POSITIONS`.
    """
    hidden = (N_TOKENS, config.hidden_size)
    queries = (N_TOKENS, config.num_attention_heads, config.head_dim)
    keys = (N_TOKENS, config.num_key_value_heads, config.head_dim)
    mlp = (N_TOKENS, config.intermediate_size)
    attention = (config.num_attention_heads, N_TOKENS, N_POSITIONS)
    of_layer = {
        "input": hidden,
        "self_attn.input": hidden,
        "self_attn.q_proj.output": queries,
        "self_attn.k_proj.output": keys,
        "self_attn.v_proj.output": keys,
        "self_attn.q": queries,
        "self_attn.k": keys,
        "self_attn.scores": attention,
        "self_attn.weights": attention,
        "self_attn.o_proj.input": queries,
        "self_attn.output": hidden,
        "post_attention_layernorm.input": hidden,
        "mlp.input": hidden,
        "mlp.gate_proj.output": mlp,
        "mlp.up_proj.output": mlp,
        "mlp.down_proj.input": mlp,
        "mlp.output": hidden,
        "output": hidden,
    }
    shapes: dict[str, tuple[int | str, ...]] = {"embed_tokens.output": hidden}
    for i in range(config.num_hidden_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in of_layer.items()}
    return shapes | {"norm.output": hidden, "logits": (N_TOKENS, config.vocab_size)}
