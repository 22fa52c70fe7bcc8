"""Whether the rows of q and k, and the rotary base, are what the model was trained with.

Owns the probe. A trained model repeats a list of random words that it has just read: it
finds, by content and position, what followed a word the last time (Olsson et al. 2022,
"In-context Learning and Induction Heads"). That needs no language, and breaks down under a
wrong rotary embedding: near by where the rows are in the wrong order, far away where the
base is too small. How well English is predicted hardly tells (`docs/conversion.md`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converter.check.forward import Reading, Text, losses
from converter.check.weights import Weights
from qllama.config import ModelConfig
from qllama.tokenizer import Tokenizer

__all__ = ["Probe", "Repetition", "alternatives", "looks_trained", "row_spread"]

F32 = npt.NDArray[np.float32]

# The median of three lists: now and then one is hard for a small model.
_N_LISTS, _N_WORDS = 3, 12
# Where the far repetition stands: within what nearly every model was trained on.
_FAR = 1536
# Bases that published models have.
_THETAS = (1e4, 1e5, 5e5, 1e6)
# Lengths of rows of independent Gaussian numbers spread by 1 / sqrt(2 k); those of
# SmolLM2 by 12 times that.
_SPREAD = 3.0


def looks_trained(weights: Weights) -> bool:
    """Whether the rows of q or k differ in length; those of random weights are all alike."""
    return row_spread(weights) > _SPREAD


def row_spread(weights: Weights) -> float:
    """How far the lengths of rows of q or k spread, in parts of what chance gives.

    Parameters
    ----------
    weights : Weights
        Of its middle layer, q_proj and k_proj are read.
    """
    layer = f"model.layers.{weights.config.num_hidden_layers // 2}.self_attn."
    spreads = [0.0]
    for name in (layer + "q_proj.weight", layer + "k_proj.weight"):
        lengths = np.concatenate([np.linalg.norm(w, axis=1) for _, w in weights.slabs(name)])
        lengths = lengths[lengths > 0]
        if len(lengths):
            spreads.append(float(np.log(lengths).std()))
    return max(spreads) * math.sqrt(2 * weights.config.hidden_size)


@dataclass(frozen=True)
class Repetition:
    """Median loss of words when they are repeated, at once and far away, in nats a word."""

    near: float
    far: float


@dataclass(frozen=True)
class Probe:
    """Lists of random words, each to be read three times: twice in a row, and far away.

    Parameters
    ----------
    start : tuple of int
        What texts of the model begin with: BOS or nothing.
    lists : tuple of tuple of int
    far : int
        Position of the last repetition.
    """

    start: tuple[int, ...]
    lists: tuple[tuple[int, ...], ...]
    far: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: ModelConfig, seed: int = 0) -> Probe | None:
        """Choose the words.

        Parameters
        ----------
        tokenizer : Tokenizer
        config : ModelConfig
        seed : int
            Other words for other seeds.

        Returns
        -------
        Probe or None
            None where the vocabulary or the context is too small.
        """
        words = _words(tokenizer, min(config.vocab_size, tokenizer.vocab_size), seed)
        limit = min(config.max_position_embeddings, config.sliding_window or 2**31)
        far = min(_FAR, limit * 3 // 4)
        if len(words) < _N_LISTS * _N_WORDS or far < 4 * _N_WORDS:
            return None
        bos = tokenizer.config.bos_token_id
        start = (bos,) if tokenizer.config.add_bos_token and bos is not None else ()
        lists = (tuple(words[i::_N_LISTS]) for i in range(_N_LISTS))
        return cls(start, tuple(lists), far)

    def texts(self, reading: Reading) -> list[Text]:
        """One text a list, to be read in the given way."""
        n_near = len(self.start) + 2 * _N_WORDS
        positions = (*range(n_near), *range(self.far, self.far + _N_WORDS))
        return [Text((*self.start, *words * 3), positions, reading) for words in self.lists]

    def losses(self, weights: Weights, states: Sequence[F32]) -> list[Repetition]:
        """Measure how well readings repeat.

        Parameters
        ----------
        weights : Weights
        states : sequence of float32, (n_tokens, hidden_size)
            Of the `texts` of one reading after another, after the last layer.

        Returns
        -------
        list of Repetition
            One a reading.
        """
        n_readings = len(states) // len(self.lists)
        # The first word of a repetition cannot be foreseen; it foresees the second.
        known = [s[-2 * _N_WORDS :].reshape(2, _N_WORDS, -1)[:, :-1] for s in states]
        targets = [word for words in self.lists * n_readings for word in words[1:] * 2]
        hidden_size = weights.config.hidden_size
        found = losses(weights, np.concatenate(known).reshape(-1, hidden_size), targets)
        by_list = found.reshape(n_readings, len(self.lists), 2, -1).mean(axis=-1)
        return [Repetition(*median) for median in np.median(by_list, axis=1).tolist()]


def alternatives(config: ModelConfig) -> list[Reading]:
    """Other readings of a model's q and k, of which one is right where the stated is wrong."""
    stated = config.rope_theta
    return [
        Reading(stated, "from interleaved"),
        Reading(stated, "to interleaved"),
        *(Reading(theta) for theta in _THETAS if not 0.5 < theta / stated < 2.0),
        *([] if config.rope_scaling is None else [Reading(stated, scaled=False)]),
    ]


def _words(tokenizer: Tokenizer, n_ids: int, seed: int) -> list[int]:
    """Random tokens that stand for words, always the same ones of a vocabulary and a seed.

    Vocabularies begin with what is frequent: a model knows little of rare tokens.
    """
    words: list[int] = []
    for token in np.random.default_rng(seed).permutation(n_ids // 4).tolist():
        if len(words) == _N_LISTS * _N_WORDS:
            break
        spelled = tokenizer.token_bytes(token)
        is_word = spelled[:1] == b" " and len(spelled) > 3 and spelled[1:].isalpha()
        if is_word and not tokenizer.is_special(token):
            words.append(token)
    return words
