"""What was measured: raw samples, and the figures that follow from them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from qllama.bench.counts import ModelCounts
from qllama.bench.limits import Limits
from qllama.bench.plan import Test

__all__ = ["BenchModel", "Results", "Row"]


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model to measure.

    Parameters
    ----------
    name : str
        How results call it.
    path : str
        Its `.qlm` file.
    """

    name: str
    path: str


@dataclass(slots=True)
class Row:
    """One test of one model with one number of threads.

    Parameters
    ----------
    model : BenchModel
    counts : ModelCounts
    test : Test
    n_threads, n_batch : int
        Of the engine.
    kv_type : str
        What it holds keys and values in.
    use_mmap : bool
        Whether the weights were mapped; else they were read.
    seconds : list of float
        What each repetition took.
    """

    model: BenchModel
    counts: ModelCounts
    test: Test
    n_threads: int
    n_batch: int
    kv_type: str
    use_mmap: bool
    seconds: list[float] = field(default_factory=list)

    @property
    def samples(self) -> list[float]:
        """Tokens a second of each repetition."""
        return [self.test.n_tokens / seconds for seconds in self.seconds]

    @property
    def mean(self) -> float:
        """Mean of the samples."""
        return statistics.fmean(self.samples)

    @property
    def deviation(self) -> float:
        """Standard deviation of the samples, with n - 1; of a single one 0."""
        return statistics.stdev(self.samples) if len(self.seconds) > 1 else 0.0

    @property
    def read_gb_s(self) -> float | None:
        """GB/s that decoding at the mean speed reads; None where a prompt is part of the test."""
        if self.test.n_prompt:
            return None
        return self.counts.decode_bytes(self.test) / self._mean_seconds / 1e9

    @property
    def gop_s(self) -> float:
        """10^9 operations/s at the mean speed."""
        return self.counts.operations(self.test) / self._mean_seconds / 1e9

    @property
    def _mean_seconds(self) -> float:
        return self.test.n_tokens / self.mean


@dataclass(slots=True)
class Results:
    """Everything that one run has measured so far.

    Parameters
    ----------
    rows : list of Row
        Those with at least one repetition.
    limits : dict of int to Limits
        By number of threads.
    weights_gb_s : dict of (str, int) to list of float
        By model's name and number of threads: GB/s of reading its weights where they
        lie, as fast as anything can.
    is_complete : bool
        Whether everything that was asked for has been measured.
    """

    rows: list[Row] = field(default_factory=list)
    limits: dict[int, Limits] = field(default_factory=dict)
    weights_gb_s: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    is_complete: bool = False
