"""Looking inside an open model: traces, and the same model with hooks.

Owns how long the engines live that are watched. What is watched is `qllama.tracing`'s
business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qllama.api.vectors import VectorModel
from qllama.errors import ContextLengthError
from qllama.model.activations import N_POSITIONS, N_TOKENS, activation_shapes
from qllama.model.adapter import Adapter
from qllama.tracing.trace import Reader, Trace
from qllama.tracing.tree import Activations
from qllama.tracing.watch import Hooks, Watch, matching

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["InspectableModel"]


class InspectableModel(VectorModel):
    """What `Llama` shows of its inside."""

    def activations(self, names: str | Iterable[str] = "**") -> Activations:
        """Return names and shapes of what `trace` and hooks may be given.

        Parameters
        ----------
        names : str or iterable of str
            Names or patterns: `*` is anything but a dot, `**` anything.

        Raises
        ------
        ValueError
            When a pattern matches nothing; names the nearest.
        """
        shapes = activation_shapes(self.config)
        return Activations({name: shapes[name] for name in matching(names, shapes)})

    def trace(
        self,
        prompt: str | Sequence[int],
        names: str | Iterable[str] = "**",
        *,
        hooks: Hooks | None = None,
        max_bytes: int = 2**30,
    ) -> Trace:
        """Evaluate a text and keep what the model computed on the way.

        The values are the engine's own: without hooks, `logits` are those of `Llama.logits`
        to the bit. An answer is traced by its tokens, prompt and answer together: they
        are computed to the same bits all at once as one by one.

        Parameters
        ----------
        prompt : str or sequence of int
            As in `generate`.
        names : str or iterable of str
            What to keep, by names or patterns, as `activations` takes and lists them.
        hooks : mapping of str to callable, optional
            By names or patterns, functions that may change an activation; see `hooked`. What
            is kept is what they left.
        max_bytes : int
            Refuse to keep more.

        Returns
        -------
        Trace
            float32 arrays by name, all tokens of the text at once.

        Raises
        ------
        ContextLengthError
            When the text does not fit the context window.
        ValueError
            When there are no tokens, a pattern matches nothing, a hook returns another
            shape, or it would be more than `max_bytes`.
        """
        tokens = self._prompt_ids(prompt)
        if not tokens:
            raise ValueError("prompt: expected at least one token, found none")
        if len(tokens) > self.n_ctx:
            raise ContextLengthError(
                f"prompt: {len(tokens)} tokens do not fit the context window of {self.n_ctx}: "
                "shorten the text, or load the model with a larger n_ctx"
            )
        kept = self.activations(names)
        sizes = {N_TOKENS: len(tokens), N_POSITIONS: len(tokens)}
        n_bytes = 4 * sum(
            math.prod(sizes[n] if isinstance(n, str) else n for n in shape)
            for shape in kept.values()
        )
        if n_bytes > max_bytes:
            raise ValueError(
                f"names: {len(kept)} activations of {len(tokens)} tokens take "
                f"{n_bytes / 2**20:.0f} MiB, more than max_bytes={max_bytes}; choose fewer, as "
                "'layers.*.output', or allow more"
            )
        adapter = self._session.adapter
        watch = Watch(activation_shapes(self.config), [*self._hooks, hooks or {}], kept)
        n = len(tokens)
        with (
            self._lock,
            closing(self._engine_for(n_ctx=n, n_slots=1, adapter=adapter, watch=watch)) as engine,
        ):
            engine.evaluate(tokens, position=0, all_logits="logits" in kept)

        def decode(token: int) -> str:
            return self.detokenize([token], special=True)

        reader = Reader(partial(self._read_out, adapter), decode)
        return Trace({name: watch.kept[name] for name in kept}, tokens, reader)

    def hooked(self, hooks: Hooks) -> Self:
        """Return the same model with functions that may change its activations.

        It answers, scores and embeds as this one does, with a cache of its own: nothing that
        hooks changed is ever reused without them. It takes turns with this model and ends
        with it; as a context manager it ends with its block.

        Parameters
        ----------
        hooks : mapping of str to callable
            By names or patterns of names (`activations` lists them), functions of an
            activation's values, a float32 array, and of an `Activation`, which tells its
            name, layer and the positions of its tokens. A function changes the array where
            it is, or returns another one of the same shape. A long prompt comes in pieces,
            an answer token by token, and tokens that are held already do not come again:
            what a function does should depend on what it is given alone. It must not
            call this model. An exception that it raises ends the call.

        Raises
        ------
        ValueError
            When a pattern matches nothing; names the nearest.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._hooks, other._owner, other._guests = (*self._hooks, hooks), self, set()
        with self._lock:
            # Its session has it take the adapter.
            other._engine = other._engine_for(n_ctx=self.n_ctx, n_slots=1, adapter=None)
            other._begin(self._session.adapter, 0.0)
            self._guests.add(other)
        return other

    def _read_out(
        self, adapter: Adapter | None, states: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return logits of states of the residual stream; see `Engine.read_out`."""
        n = min(len(states), self.n_ctx)
        with self._lock, closing(self._engine_for(n_ctx=n, n_slots=1, adapter=adapter)) as engine:
            parts = range(0, len(states), engine.n_batch)
            return np.concatenate([engine.read_out(states[i : i + engine.n_batch]) for i in parts])
