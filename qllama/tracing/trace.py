"""What a model computed for one text: its activations by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qllama.tracing.lens import LogitLens, ReadOut, look
from qllama.tracing.tree import as_html, as_text
from qllama.tracing.watch import matching, nearest

__all__ = ["Reader", "Trace"]

_F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reader:
    """What a trace needs of the model that made it.

    Parameters
    ----------
    read_out : callable
        See `Engine.read_out`.
    decode : callable
        Returns a token's text.
    """

    read_out: ReadOut
    decode: Callable[[int], str]


class Trace(Mapping[str, _F32]):
    """Activations of a text, float32 arrays by name.

    As a context manager it lets go of them at the end of the block; arrays that were
    taken out stay.

    Parameters
    ----------
    arrays : dict of str to float32
        In the order of the forward pass.
    token_ids : sequence of int
        The text.
    reader : Reader

    Attributes
    ----------
    token_ids : tuple of int
    tokens : tuple of str
        Their texts, one by one.
    """

    def __init__(self, arrays: dict[str, _F32], token_ids: Sequence[int], reader: Reader) -> None:
        self._arrays: dict[str, _F32] | None = arrays
        self._reader = reader
        self.token_ids = tuple(token_ids)
        self.tokens = tuple(map(reader.decode, token_ids))

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the arrays."""
        self._arrays = None

    def __getitem__(self, name: str) -> _F32:
        arrays = self._open()
        if name not in arrays:
            raise KeyError(f"{name}: not in this trace, or no activation {nearest(name, arrays)}")
        return arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open())

    def __len__(self) -> int:
        return len(self._open())

    def __repr__(self) -> str:
        if self._arrays is None:
            return "<Trace, closed>"
        return f"<{self._title()}>\n{as_text(self._shapes())}"

    def _repr_html_(self) -> str:
        return as_html(self._title(), self._shapes())

    def stack(self, pattern: str) -> _F32:
        """Return like activations of all layers as one array.

        Parameters
        ----------
        pattern : str
            Of names, as `layers.*.mlp.output`.

        Returns
        -------
        float32, (n_layers, ...)
            In the order of the layers.

        Raises
        ------
        ValueError
            When nothing matches, or shapes differ.
        """
        arrays = {name: self[name] for name in matching(pattern, self)}
        first, shape = next((name, array.shape) for name, array in arrays.items())
        for name, array in arrays.items():
            if array.shape != shape:
                raise ValueError(
                    f"{pattern!r}: expected activations of one shape, found {shape} of {first} "
                    f"and {array.shape} of {name}; let it match fewer"
                )
        return np.stack([*arrays.values()])

    def logit_lens(self, k: int = 5, positions: int | Sequence[int] = -1) -> LogitLens:
        """Return what the model would say if it stopped after each layer.

        Parameters
        ----------
        k : int
            Likeliest tokens that are told of each.
        positions : int or sequence of int
            Tokens after which to look, by their place in the text; negative ones count
            from its end.

        Returns
        -------
        LogitLens
            Of `embed_tokens.output` and `layers.*.output`, those that the trace has.

        Raises
        ------
        ValueError
            When it has none of them, or the model is closed.
        IndexError
            When a position is outside the text.
        """
        states = [
            (name, values)
            for name, values in self._open().items()
            if name == "embed_tokens.output"
            or (name.startswith("layers.") and name.count(".") == 2 and name.endswith(".output"))
        ]
        if not states:
            raise ValueError("the trace has no 'layers.*.output': trace with names that match it")
        wanted = [positions] if isinstance(positions, int | np.integer) else positions
        places = [range(len(self.tokens))[p] for p in wanted]
        reader = self._reader
        return look(states, self.tokens, places, k, reader.read_out, reader.decode)

    def _title(self) -> str:
        arrays = self._open()
        mib = sum(array.nbytes for array in arrays.values()) / 2**20
        return f"Trace of {len(self.tokens)} tokens: {len(arrays)} activations, {mib:.1f} MiB"

    def _shapes(self) -> dict[str, tuple[int | str, ...]]:
        return {name: array.shape for name, array in self._open().items()}

    def _open(self) -> dict[str, _F32]:
        if self._arrays is None:
            raise ValueError("the trace is closed: use it inside its with block")
        return self._arrays
