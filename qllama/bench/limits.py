"""The machine's two limits for a number of threads: reading memory, and int8 dot products.

Both are measured by our own compiled loops on a team of threads like the engine's.
A sample takes some hundredths of a second; the runner takes one between any two
measurements, so that what slows the machine down slows both.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from qllama.kernels import probes
from qllama.kernels.dot import MAX_STEPS
from qllama.kernels.isa import current_isa
from qllama.kernels.team import ThreadTeam
from qllama.memory import available_bytes

__all__ = ["Limits", "stream_memory"]

_LINE = 64
_STREAM_BYTES = 512 * 2**20
_LEAST_STREAM_BYTES = 2**20
_MEMORY_SHARE = 4
_PIECE_BYTES = 4 * 2**20
_DOT_PIECES_PER_THREAD = 16
_DOT_SECONDS = 0.02


def stream_memory() -> npt.NDArray[np.uint8]:
    """Memory to read: far more than caches hold, but not a machine's or container's last.

    Returns
    -------
    uint8, (n,)
        Every page is there.
    """
    share = max(_LEAST_STREAM_BYTES, available_bytes() // _MEMORY_SHARE)
    return np.ones(min(_STREAM_BYTES, share), np.uint8)


class Limits:
    """Samples of the limits with `n_threads` threads.

    Parameters
    ----------
    n_threads : int
    memory : uint8, (n,)
        Of `stream_memory`; shared by the limits of a run.

    Attributes
    ----------
    read_gb_s, read_ahead_gb_s : list of float
        GB/s of reading `memory` plainly, and with prefetch instructions.
    dot4_gop_s : list of float
        10^9 operations/s of dot products of bytes, as the kernels compute them: a
        multiplication and an addition a byte.
    """

    def __init__(self, n_threads: int, memory: npt.NDArray[np.uint8]) -> None:
        self.n_threads = n_threads
        self.read_gb_s: list[float] = []
        self.read_ahead_gb_s: list[float] = []
        self.dot4_gop_s: list[float] = []
        self._memory = memory
        self._team = ThreadTeam(n_threads)
        self._sums = np.zeros(n_threads, np.int64)
        self._operands = _operands()
        self._n_blocks = 1

    def sample(self) -> None:
        """Measure each limit once."""
        self.read_gb_s.append(self._read(probes.read_probe(), self._memory))
        self.read_ahead_gb_s.append(self._read(probes.read_ahead_probe(), self._memory))
        self.dot4_gop_s.append(self._dot4())

    @property
    def n_samples(self) -> int:
        """Samples of each limit so far."""
        return len(self.dot4_gop_s)

    @property
    def best_read(self) -> tuple[str, list[float]]:
        """How this machine reads fastest, `plain` or `prefetched`, and the samples."""
        plain, ahead = self.read_gb_s, self.read_ahead_gb_s
        if statistics.median(ahead) > statistics.median(plain):
            return "prefetched", ahead
        return "plain", plain

    def read_once(self, data: npt.NDArray[np.uint8]) -> float:
        """Read memory as fast as plain and prefetched reading can, once each.

        Parameters
        ----------
        data : uint8, (n,)
            64-byte aligned, such as the weights of an open model.

        Returns
        -------
        float
            GB/s, the better of both.
        """
        return max(self._read(p, data) for p in (probes.read_probe(), probes.read_ahead_probe()))

    def close(self) -> None:
        """Stop the threads; no more samples are taken after this."""
        self._team.close()

    def _read(self, probe: Any, data: npt.NDArray[np.uint8]) -> float:
        data, unit = _aligned(data), probes.READ_UNIT
        piece = max(unit, min(_PIECE_BYTES, data.size // self.n_threads // unit * unit))
        n_pieces = data.size // piece
        seconds = self._seconds(probe, data.ctypes.data, piece, n_pieces)
        return n_pieces * piece / seconds / 1e9

    def _dot4(self) -> float:
        n_pieces = _DOT_PIECES_PER_THREAD * self.n_threads
        n_vectors = n_pieces * MAX_STEPS * probes.DOT_ROWS * probes.DOT_CODES
        block_ops = 2 * 4 * current_isa().lanes * n_vectors
        address = self._operands.ctypes.data
        while True:
            seconds = self._seconds(probes.dot4_probe(), address, self._n_blocks, n_pieces)
            ops_per_second = block_ops * self._n_blocks / seconds
            if seconds > _DOT_SECONDS / 2:
                return ops_per_second / 1e9
            wanted = int(_DOT_SECONDS * ops_per_second / block_ops)
            self._n_blocks = max(2 * self._n_blocks, wanted)

    def _seconds(self, probe: Any, *numbers: int) -> float:
        record = np.array((self._team.state, *numbers, self._sums.ctypes.data), probes.PROBE)
        start = time.perf_counter()
        self._team.run(probe.address, record.ctypes.data)
        return time.perf_counter() - start


def _aligned(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`data`, uint8 (n,), from its first whole cache line on."""
    return data[-data.ctypes.data % _LINE :]


def _operands() -> npt.NDArray[np.uint8]:
    """What `dot4_probe` multiplies: any codes, and weights of few bits."""
    n_rows = probes.DOT_CODES + probes.DOT_RING * MAX_STEPS * probes.DOT_ROWS
    rng = np.random.default_rng(0)
    return _aligned(rng.integers(0, 1 << probes.DOT_BITS, (n_rows + 1) * _LINE, dtype=np.uint8))
