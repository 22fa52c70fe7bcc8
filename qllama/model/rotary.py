"""Frequencies of the rotary embedding, with the ways to stretch them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qllama.config import ModelConfig, RopeScaling

__all__ = ["RotaryTable"]

F64 = npt.NDArray[np.float64]


class RotaryTable:
    """Cosines and sines of a model's rotary angles.

    Parameters
    ----------
    config : ModelConfig
    divisors : float32, (head_dim / 2,), optional
        The tensor `model.rope_divisors`, for rope type `divisors`.
    """

    def __init__(self, config: ModelConfig, divisors: npt.NDArray[np.float32] | None) -> None:
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
        frequencies = config.rope_theta**-exponents
        scaling = config.rope_scaling
        self._amplitude = 1.0
        if scaling is not None:
            if divisors is not None:
                frequencies = frequencies / divisors
            elif scaling.rope_type == "linear":
                frequencies = frequencies / scaling.factor
            elif scaling.rope_type == "llama3":
                frequencies = _llama3(frequencies, scaling)
            elif scaling.rope_type == "yarn":
                frequencies = _yarn(frequencies, scaling, config)
                amplitude = scaling.attention_factor
                self._amplitude = (
                    0.1 * math.log(scaling.factor) + 1.0 if amplitude is None else amplitude
                )
        self.frequencies = frequencies

    def __call__(
        self, positions: npt.NDArray[np.integer]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Cosines and sines at `positions` (n,): float32, (n, head_dim / 2) each."""
        angles = positions.astype(np.float64)[:, None] * self.frequencies
        return (
            (np.cos(angles) * self._amplitude).astype(np.float32),
            (np.sin(angles) * self._amplitude).astype(np.float32),
        )


def _original_context(scaling: RopeScaling) -> int:
    assert scaling.original_max_position_embeddings is not None  # RopeScaling checks it
    return scaling.original_max_position_embeddings


def _llama3(frequencies: F64, scaling: RopeScaling) -> F64:
    """Llama 3.1: long wavelengths divided by the factor, short ones kept, a ramp between."""
    turns = _original_context(scaling) * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    result: F64 = frequencies * (kept + (1.0 - kept) / scaling.factor)
    return result


def _yarn(frequencies: F64, scaling: RopeScaling, config: ModelConfig) -> F64:
    """YaRN (Peng et al. 2023, arXiv:2309.00071, section 3.2): a ramp over dimensions."""
    size, theta = config.head_dim, config.rope_theta

    def dimension(n_turns: float) -> float:
        """The dimension that turns `n_turns` times over the original context."""
        ratio = _original_context(scaling) / (n_turns * 2 * math.pi)
        return size * math.log(ratio) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), size - 1)
    ramp = (np.arange(size // 2) - low) / max(high - low, 0.001)
    stretched = np.clip(ramp, 0.0, 1.0)
    result: F64 = frequencies * (1.0 - stretched) + frequencies / scaling.factor * stretched
    return result
