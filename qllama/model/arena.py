"""One block of zeroed memory, handed out in aligned pieces by address."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qllama.errors import OutOfMemoryError
from qllama.memory import zeroed_pages

__all__ = ["Arena"]

_ALIGNMENT = 128


class Arena:
    """Reserve pieces first, then `allocate`; addresses are valid while the arena lives.

    Memory is committed by the operating system as it is touched.
    """

    def __init__(self) -> None:
        self._offsets: dict[str, int] = {}
        self._size = 0

    def reserve(self, name: str, n_bytes: int) -> None:
        """Add a piece `name` of `n_bytes`, aligned to 128."""
        self._offsets[name] = self._size
        self._size += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT

    def allocate(
        self, what: str = "the buffers of a step", advice: str = "choose a smaller n_batch or n_ctx"
    ) -> dict[str, int]:
        """Allocate all pieces; returns their addresses.

        Parameters
        ----------
        what, advice : str
            For the message: what they are, and what takes less.

        Raises
        ------
        OutOfMemoryError
            When this machine does not grant so much.
        """
        try:
            self._memory = zeroed_pages(self._size)
        except MemoryError:
            raise OutOfMemoryError(
                f"{what} take {self._size / 2**20:.0f} MiB, more than this machine grants; {advice}"
            ) from None
        base = self._memory.ctypes.data
        return {name: base + offset for name, offset in self._offsets.items()}

    def floats(self, name: str, n_rows: int, n_columns: int) -> npt.NDArray[np.float32]:
        """Return a view of the start of a piece.

        Parameters
        ----------
        name : str
        n_rows, n_columns : int

        Returns
        -------
        float32, (n_rows, n_columns)
        """
        start = self._offsets[name]
        n_bytes = 4 * n_rows * n_columns
        return self._memory[start : start + n_bytes].view(np.float32).reshape(n_rows, n_columns)
