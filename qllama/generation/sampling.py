"""From logits to the next token: the sampler's parameters, its chain and its draw.

Owns the order of the chain and the random stream. The single steps are in
`filters`; text, stopping and the model are other modules' business.
"""

from __future__ import annotations

import math
import numbers
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from qllama.errors import SamplingError
from qllama.generation import filters
from qllama.kernels.selection import draw

__all__ = ["Candidates", "Sampler", "SamplingOptions", "SamplingParams"]


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments, all optional."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; names, defaults and meanings are llama.cpp's.

    Parameters
    ----------
    temperature : float
        Divides the logits that survive the filters; 0 always takes the likeliest token.
    top_k : int
        Keep the `top_k` likeliest tokens; 0 keeps all.
    top_p : float
        Keep the fewest tokens whose probability is at least `top_p`; 1 keeps all.
    min_p : float
        Keep tokens at least `min_p` times as likely as the likeliest; 0 keeps all.
    repeat_penalty : float
        Logits of recent tokens are divided by it, negative ones multiplied; 1 is off.
    repeat_last_n : int
        How many of the last tokens, prompt included, count as recent; -1 is all.
    presence_penalty, frequency_penalty : float
        Subtracted from a recent token's logit, once and for each time it was used.
    logit_bias : mapping of int to float
        Added to single tokens' logits; -inf forbids a token.
    seed : int or None
        Of the random draws; None and -1 choose a new one.

    Raises
    ------
    ValueError
        When a value is out of range; names the parameter and its range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_real("temperature", self.temperature, at_least=0)
        _check_integer("top_k", self.top_k, at_least=0)
        _check_real("top_p", self.top_p, at_least=0, at_most=1)
        _check_real("min_p", self.min_p, at_least=0, at_most=1)
        _check_real("repeat_penalty", self.repeat_penalty, above=0)
        _check_integer("repeat_last_n", self.repeat_last_n, at_least=-1)
        _check_real("presence_penalty", self.presence_penalty)
        _check_real("frequency_penalty", self.frequency_penalty)
        if self.seed is not None:
            _check_integer("seed", self.seed, at_least=-1)
        for token, bias in self.logit_bias.items():
            _check_integer("logit_bias token id", token, at_least=0)
            if bias != -math.inf:
                _check_real(f"logit_bias[{token}]", bias)
        # A copy: later changes to the caller's dict must not reach a running stream.
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))


class Candidates(NamedTuple):
    """The tokens that may come next, and how likely each is.

    Parameters
    ----------
    ids : intp, (n_candidates,)
        Token ids, ascending.
    weights : float64, (n_candidates,)
        Proportional to the probabilities; the likeliest token's is 1.
    """

    ids: npt.NDArray[np.intp]
    weights: npt.NDArray[np.float64]


class Sampler:
    """Chooses tokens by one `SamplingParams` and one stream of random numbers.

    The chain is llama.cpp's default one, in its order: logit bias, penalties,
    top-k, top-p, min-p, temperature, draw. Each draw takes exactly one number
    from `PCG64(seed)`, whatever the filters keep, so the same seed and the same
    logits give the same tokens on every machine.

    Parameters
    ----------
    params : SamplingParams
        How to choose.
    vocab_size : int
        Only ids below it are chosen. A model may have more logits than its
        tokenizer has tokens: padding, which stands for no text.
    """

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self.params = params
        self._all_ids = np.arange(vocab_size)
        self._all_ids.flags.writeable = False
        # 32 bits are short enough to read out and type in again.
        self.seed = secrets.randbits(32) if params.seed in (None, -1) else int(params.seed or 0)
        """int : the seed in use, also when it was chosen here."""
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    def sample(self, logits: npt.NDArray[np.float32], history: npt.NDArray[np.int32]) -> int:
        """Choose the token that follows `history`.

        Parameters
        ----------
        logits : float32, (n_logits,)
            The model's output after the last token; not modified.
        history : int32, (n_tokens,)
            Prompt and answer so far, for the penalties.

        Raises
        ------
        SamplingError
            When the logits hold a NaN, or no token is allowed.
        ValueError
            When `logit_bias` names a token outside the vocabulary.
        """
        adjusted, peak = self._adjust(logits, history)
        if self.params.temperature == 0:
            return int(adjusted.argmax())
        ids, left = self._filter(adjusted)
        point = self._random.random()
        return int(ids[draw(left, peak, float(self.params.temperature), point)])

    def candidates(
        self, logits: npt.NDArray[np.float32], history: npt.NDArray[np.int32]
    ) -> Candidates:
        """Return the distribution that `sample` draws from; draws nothing.

        Parameters
        ----------
        logits : float32, (n_logits,)
            The model's output after the last token; not modified.
        history : int32, (n_tokens,)
            Prompt and answer so far, for the penalties.

        Raises
        ------
        SamplingError, ValueError
            As `sample`.
        """
        adjusted, peak = self._adjust(logits, history)
        if self.params.temperature == 0:
            return Candidates(np.array([adjusted.argmax()]), np.ones(1))
        ids, left = self._filter(adjusted)
        weights = np.subtract(left, peak, dtype=np.float64)
        with np.errstate(over="ignore"):  # a tiny temperature: -inf is what is meant
            weights /= self.params.temperature
        return Candidates(ids, np.exp(weights, out=weights))

    def _adjust(
        self, logits: npt.NDArray[np.float32], history: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.float32], np.float32]:
        """Apply what changes logits, and check that one is left: the logits, the largest."""
        params = self.params
        n_recent = history.size if params.repeat_last_n == -1 else params.repeat_last_n
        logits = filters.apply_logit_bias(logits[: self._all_ids.size], params.logit_bias)
        logits = filters.apply_penalties(
            logits,
            history[max(0, history.size - n_recent) :],
            repeat=params.repeat_penalty,
            presence=params.presence_penalty,
            frequency=params.frequency_penalty,
        )
        peak = logits.max()
        if peak == -math.inf:
            raise SamplingError("no token is left to choose: logit_bias forbids all of them")
        if not math.isfinite(peak):
            raise SamplingError(
                f"the model's logits hold {peak}: expected finite numbers; "
                "check the model file with `qllama verify`"
            )
        return logits, peak

    def _filter(
        self, logits: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """Return the ids that the filters keep, the likeliest among them, and their logits."""
        params = self.params
        ids = self._all_ids
        if params.top_k > 0:
            ids = filters.top_k(logits, params.top_k)
            logits = logits[ids]
        if params.top_p < 1:
            kept = filters.top_p(logits, params.top_p)
            ids, logits = ids[kept], logits[kept]
        if params.min_p > 0:
            kept = filters.min_p(logits, params.min_p)
            ids, logits = ids[kept], logits[kept]
        return ids, logits


def _check_integer(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name}: expected an integer >= {at_least}, found {value!r}")


def _check_real(
    name: str,
    value: object,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> None:
    good = (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (at_least is None or float(value) >= at_least)
        and (above is None or float(value) > above)
        and (at_most is None or float(value) <= at_most)
    )
    if not good:
        limits = [("from", at_least), ("above", above), ("up to", at_most)]
        wanted = " ".join(f"{word} {limit}" for word, limit in limits if limit is not None)
        raise ValueError(
            f"{name}: expected a finite number {wanted}".rstrip() + f", found {value!r}"
        )
