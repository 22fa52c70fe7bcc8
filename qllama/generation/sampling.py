"""From logits to the next token: the sampler's chain and its draw.

Owns the order of the chain and the random stream. The single steps are in `penalties`
and `filters`; text, stopping and the model are other modules' business.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qllama.errors import SamplingError
from qllama.generation import filters, penalties
from qllama.generation.guide import masked
from qllama.generation.options import SamplingParams
from qllama.kernels.selection import draw

__all__ = ["Candidates", "Sampler"]


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

    The chain is llama.cpp's default one, in its order: the caller's processors, what a
    constraint allows, logit bias, penalties, DRY, top-k, typical, top-p, min-p, XTC,
    temperature, draw; with mirostat temperature and its filter instead of all from top-k
    on. Each token takes exactly one number from `PCG64(seed)`, and one before it where XTC
    is on, whatever the filters keep, so the same seed and the same logits give the same
    tokens on every machine. At temperature 0 nothing is filtered or drawn.

    Parameters
    ----------
    params : SamplingParams
        How to choose.
    vocab_size : int
        Only ids below it are chosen. A model may have more logits than its
        tokenizer has tokens: padding, which stands for no text.
    token_text : callable, optional
        Returns a token's text; DRY finds its sequence breakers by it.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        token_text: Callable[[int], str] | None = None,
    ) -> None:
        self.params = params
        self._token_text = token_text
        self._breaking: dict[int, bool] = {}
        self._mu = 2 * params.mirostat_tau
        self._all_ids = np.arange(vocab_size)
        self._all_ids.flags.writeable = False
        # 32 bits are short enough to read out and type in again.
        self.seed = secrets.randbits(32) if params.seed in (None, -1) else int(params.seed or 0)
        """int : the seed in use, also when it was chosen here."""
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    def sample(
        self,
        logits: npt.NDArray[np.float32],
        history: npt.NDArray[np.int32],
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """Choose the token that follows `history`.

        Parameters
        ----------
        logits : float32, (n_logits,)
            The model's output after the last token; not modified.
        history : int32, (n_tokens,)
            Prompt and answer so far, for the penalties.
        allowed : bool, (vocab_size,), optional
            The tokens that a constraint allows.

        Raises
        ------
        SamplingError
            When the logits hold a NaN, or no token is allowed.
        ValueError
            When `logit_bias` names a token outside the vocabulary, or a processor
            returns something else than logits.
        """
        params = self.params
        adjusted, peak = self._adjust(logits, history, allowed)
        if params.temperature == 0:
            return int(adjusted.argmax())
        if params.mirostat:
            return self._sample_surprise(adjusted)
        ids, left = self._filter(adjusted)
        if params.xtc_probability > 0 and self._random.random() < params.xtc_probability:
            kept = filters.xtc(left, params.xtc_threshold)
            ids, left = ids[kept], left[kept]
            peak = left.max()
        point = self._random.random()
        return int(ids[draw(left, peak, float(params.temperature), point)])

    def candidates(
        self, logits: npt.NDArray[np.float32], history: npt.NDArray[np.int32]
    ) -> Candidates:
        """Return the distribution that `sample` draws from; draws nothing.

        XTC, which acts on some tokens only, and mirostat are left out.

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
        self,
        logits: npt.NDArray[np.float32],
        history: npt.NDArray[np.int32],
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[npt.NDArray[np.float32], np.float32]:
        """Apply what changes logits, and check that one is left: the logits, the largest."""
        params = self.params
        logits = logits[: self._all_ids.size]
        for process in params.logits_processors:
            logits = _processed(process(history, logits), logits.size)
        if allowed is not None:
            logits = masked(logits, allowed)
        logits = penalties.apply_logit_bias(logits, params.logit_bias)
        logits = penalties.apply_penalties(
            logits,
            _last(history, params.repeat_last_n),
            repeat=params.repeat_penalty,
            presence=params.presence_penalty,
            frequency=params.frequency_penalty,
        )
        if params.dry_multiplier > 0:
            recent = _last(history, params.dry_penalty_last_n)
            logits = penalties.apply_dry(
                logits,
                recent,
                multiplier=params.dry_multiplier,
                base=params.dry_base,
                allowed_length=params.dry_allowed_length,
                breakers={token for token in set(recent.tolist()) if self._breaks(token)},
            )
        peak = logits.max()
        if peak == -math.inf:
            raise SamplingError(
                "no token is left to choose: logit_bias forbids all that a constraint leaves, "
                "or a logits processor does"
            )
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
        if params.typical_p < 1:
            kept = filters.typical(logits, params.typical_p)
            ids, logits = ids[kept], logits[kept]
        if params.top_p < 1:
            kept = filters.top_p(logits, params.top_p)
            ids, logits = ids[kept], logits[kept]
        if params.min_p > 0:
            kept = filters.min_p(logits, params.min_p)
            ids, logits = ids[kept], logits[kept]
        return ids, logits

    def _sample_surprise(self, logits: npt.NDArray[np.float32]) -> int:
        """Draw by mirostat, and learn from the surprise of what came."""
        params = self.params
        with np.errstate(over="ignore"):
            warm = (logits - logits.max()) / np.float32(params.temperature)
        ids = filters.mirostat(warm, self._mu)
        weights = np.exp(warm[ids], dtype=np.float64)
        sums = np.cumsum(weights)
        chosen = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        chosen = min(chosen, ids.size - 1)
        surprise = -math.log2(weights[chosen] / sums[-1])
        self._mu -= params.mirostat_eta * (surprise - params.mirostat_tau)
        return int(ids[chosen])

    def _breaks(self, token: int) -> bool:
        if token not in self._breaking:
            text = "" if self._token_text is None else self._token_text(token)
            breakers = self.params.dry_sequence_breakers
            self._breaking[token] = any(breaker in text for breaker in breakers)
        return self._breaking[token]


def _last(history: npt.NDArray[np.int32], n: int) -> npt.NDArray[np.int32]:
    """Return the last n tokens; of -1 all."""
    return history if n == -1 else history[max(0, history.size - n) :]


def _processed(logits: object, n_logits: int) -> npt.NDArray[np.float32]:
    """Check what a caller's processor returned."""
    if not isinstance(logits, np.ndarray) or logits.shape != (n_logits,):
        found = getattr(logits, "shape", type(logits).__name__)
        raise ValueError(
            f"logits_processors: expected logits of shape ({n_logits},), found {found}"
        )
    return logits.astype(np.float32, copy=False)
