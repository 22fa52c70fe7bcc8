"""How the next token is chosen, as the caller says it: every option, checked once.

Names, defaults and meanings are llama.cpp's. What the options do is `sampling`'s business.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import numpy.typing as npt

__all__ = ["LogitsProcessor", "SamplingOptions", "SamplingParams"]

#: Given the tokens so far, int32 (n_tokens,), and logits, float32 (vocab_size,), which it
#: must not modify; returns logits of the same shape.
LogitsProcessor = Callable[
    [npt.NDArray[np.int32], npt.NDArray[np.float32]], npt.NDArray[np.float32]
]


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments, all optional."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    xtc_probability: float
    xtc_threshold: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: Mapping[int, float]
    logits_processors: Sequence[LogitsProcessor]
    seed: int | None


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; names, defaults and meanings are llama.cpp's.

    `sampling.Sampler` says in which order these act; `penalties` and `filters` what each is.

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
    typical_p : float
        Keep the tokens nearest the expected information that have this probability; 1
        keeps all.
    xtc_probability, xtc_threshold : float
        With this probability exclude the top choices: of the tokens at least as likely as
        the threshold only the least likely stays. 0 is off.
    repeat_penalty : float
        Logits of recent tokens are divided by it, negative ones multiplied; 1 is off.
    repeat_last_n : int
        How many of the last tokens, prompt included, count as recent; -1 is all.
    presence_penalty, frequency_penalty : float
        Subtracted from a recent token's logit, once and for each time it was used.
    dry_multiplier, dry_base : float
        A token that goes on repeating a run of n tokens loses `dry_multiplier *
        dry_base ** (n - dry_allowed_length)`; 0 is off.
    dry_allowed_length, dry_penalty_last_n : int
        Shorter runs are free; how many of the last tokens are looked at, -1 is all.
    dry_sequence_breakers : sequence of str
        No run goes beyond a token whose text has one of these in it.
    mirostat : int
        2 keeps the surprise of the answer near `mirostat_tau` instead of filtering (top-k,
        typical, top-p, min-p, XTC); 0 is off. There is no version 1.
    mirostat_tau, mirostat_eta : float
        Bits to aim at, and how fast.
    logit_bias : mapping of int to float
        Added to single tokens' logits; -inf forbids a token.
    logits_processors : sequence of callable
        Called in turn before anything else, each as `LogitsProcessor` says.
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
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    logits_processors: Sequence[LogitsProcessor] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_real("temperature", self.temperature, at_least=0)
        _check_integer("top_k", self.top_k, at_least=0)
        _check_real("top_p", self.top_p, at_least=0, at_most=1)
        _check_real("min_p", self.min_p, at_least=0, at_most=1)
        _check_real("typical_p", self.typical_p, at_least=0, at_most=1)
        _check_real("xtc_probability", self.xtc_probability, at_least=0, at_most=1)
        _check_real("xtc_threshold", self.xtc_threshold, at_least=0, at_most=1)
        _check_real("repeat_penalty", self.repeat_penalty, above=0)
        _check_integer("repeat_last_n", self.repeat_last_n, at_least=-1)
        _check_real("presence_penalty", self.presence_penalty)
        _check_real("frequency_penalty", self.frequency_penalty)
        _check_real("dry_multiplier", self.dry_multiplier, at_least=0)
        _check_real("dry_base", self.dry_base, at_least=1)
        _check_integer("dry_allowed_length", self.dry_allowed_length, at_least=0)
        _check_integer("dry_penalty_last_n", self.dry_penalty_last_n, at_least=-1)
        if isinstance(self.dry_sequence_breakers, str) or not all(
            isinstance(text, str) and text for text in self.dry_sequence_breakers
        ):
            raise ValueError(
                "dry_sequence_breakers: expected a sequence of non-empty strings, "
                f"found {self.dry_sequence_breakers!r}"
            )
        if self.mirostat not in (0, 2):
            raise ValueError(f"mirostat: expected 0 (off) or 2, found {self.mirostat!r}")
        _check_real("mirostat_tau", self.mirostat_tau, at_least=0)
        _check_real("mirostat_eta", self.mirostat_eta, at_least=0)
        for i, process in enumerate(self.logits_processors):
            if not callable(process):
                raise ValueError(f"logits_processors[{i}]: expected a callable, found {process!r}")
        if self.seed is not None:
            _check_integer("seed", self.seed, at_least=-1)
        for token, bias in self.logit_bias.items():
            _check_integer("logit_bias token id", token, at_least=0)
            if bias != -math.inf:
                _check_real(f"logit_bias[{token}]", bias)
        # A copy: later changes to the caller's dict must not reach a running stream.
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        for name in ("dry_sequence_breakers", "logits_processors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


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
