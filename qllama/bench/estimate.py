"""How fast a model should generate, before it has been run or even converted.

A token reads every weight once, and the keys and values that it sees: the time that
takes at the speed at which this machine reads memory is the least there is, and kernels
reach most of that speed. Other limits (arithmetic, many small matrices) are left out.
"""

from __future__ import annotations

import statistics

from qllama.bench.counts import ModelCounts
from qllama.bench.limits import Limits, stream_memory
from qllama.bench.plan import Test

__all__ = ["TYPICAL_SHARE", "measured_read_gb_s", "tokens_per_second"]

#: Of the read speed that generating reaches: 0.70 to 0.78 with mapped weights of 1B and 3B
#: models, up to 0.90 with small or copied ones (`docs/benchmarks.md`).
TYPICAL_SHARE = 0.75

_N_SAMPLES = 5


def measured_read_gb_s(n_threads: int) -> float:
    """Measure how fast this machine reads memory, in GB/s; takes some tenths of a second.

    Parameters
    ----------
    n_threads : int
        That read together.
    """
    memory = stream_memory()
    limits = Limits(n_threads, memory)
    try:
        return statistics.median(limits.read_once(memory) for _ in range(_N_SAMPLES))
    finally:
        limits.close()


def tokens_per_second(counts: ModelCounts, n_ctx: int, read_gb_s: float) -> float:
    """Estimate the speed of generating the last token of a context.

    Parameters
    ----------
    counts : ModelCounts
        Of the model as it is stored.
    n_ctx : int
        Tokens in the context, this one included.
    read_gb_s : float
        As `measured_read_gb_s` gives it.
    """
    token = Test(n_prompt=0, n_gen=1, depth=n_ctx - 1)
    return TYPICAL_SHARE * read_gb_s * 1e9 / counts.decode_bytes(token)
