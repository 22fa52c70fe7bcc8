"""The engine: a bound model, its cache and buffers, and the team that computes.

Owns everything the compiled forward pass touches and checks every index before
compiled code sees it. Knows tokens as numbers only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from qllama.config import DEFAULT_N_BATCH
from qllama.errors import ContextLengthError
from qllama.format import QlmFile
from qllama.kernels.cores import default_n_threads
from qllama.kernels.reference import rms_norm
from qllama.kernels.team import ThreadTeam
from qllama.model.activations import Observer
from qllama.model.adapter import Adapter, bind
from qllama.model.attention_plan import AttentionPlan
from qllama.model.batch import Batch, check_order, check_range
from qllama.model.buffers import Buffers
from qllama.model.decoder import decoder
from qllama.model.kv_cache import KvCache, KvLayout
from qllama.model.pace import Pace
from qllama.model.records import STEP
from qllama.model.rotary import RotaryTable
from qllama.model.stepwise import Stepwise
from qllama.model.warmup import OnCompile, warmup
from qllama.model.weights import Weights

__all__ = ["Engine"]

# More than any machine has cores for; each takes a stack and a part of the buffers.
_MAX_THREADS = 1024


class Engine:
    """Evaluates tokens of up to `n_slots` sequences with one model.

    Parameters
    ----------
    file : QlmFile
        Must stay open while the engine lives.
    n_ctx : int
        Longest sequence; 0 takes the model's own limit.
    n_threads : int, optional
        Default: the physical cores this process may use.
    n_slots : int
        Sequences whose keys and values are held at once.
    n_batch : int
        Tokens evaluated together, at most as many as all slots hold; results do not
        depend on it.
    kv_type : str
        What keys and values are held in: `f16`, or `q8`, which takes half the memory.
    on_compile : callable, optional
        Called as (kernel name, done, total) while kernels are compiled or loaded.
    observer : Observer, optional
        Is shown activations, and may change them.

    Raises
    ------
    BadTensorError
        The file's tensors do not fit its config.
    ContextLengthError
        `n_ctx` is negative, past the model's limit, or too large for this machine's memory.
    OutOfMemoryError
        This machine does not grant the memory that a step works in.
    KernelError
        The system does not start so many threads.
    ValueError
        A count is below 1, `n_threads` above 1024, or `kv_type` unknown.
    """

    def __init__(
        self,
        file: QlmFile,
        *,
        n_ctx: int = 0,
        n_threads: int | None = None,
        n_slots: int = 1,
        n_batch: int = DEFAULT_N_BATCH,
        kv_type: str = "f16",
        on_compile: OnCompile | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.config = file.config
        limit = self.config.max_position_embeddings
        if not 0 <= n_ctx <= limit:
            raise ContextLengthError(
                f"n_ctx: expected 0 (the model's own limit) to {limit}, found {n_ctx}"
            )
        self.n_ctx = n_ctx or limit
        self.n_threads = default_n_threads() if n_threads is None else n_threads
        self.n_slots = n_slots
        self.n_batch = min(n_batch, self.n_ctx * n_slots)
        for name in ("n_threads", "n_slots", "n_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.n_threads > _MAX_THREADS:
            raise ValueError(f"n_threads: expected at most {_MAX_THREADS}, found {self.n_threads}")
        file.prefetch()
        self._cache = KvCache(self.config, self.n_ctx, n_slots, kv_type)
        types = {tensor.type for tensor in file.tensors.values() if len(tensor.shape) == 2}
        types |= {"q8_0"} if kv_type == "q8" else set()
        warmup(types, on_compile, with_stages=observer is not None)
        self._weights = Weights(file)
        self._rotary = RotaryTable(self.config, self._weights.rope_divisors)
        self._team = ThreadTeam(self.n_threads)
        self._plan = AttentionPlan(
            n_kv_heads=self.config.num_key_value_heads,
            repeats=self.config.num_attention_heads // self.config.num_key_value_heads,
            sliding_window=self.config.sliding_window,
            capacity=self._cache.capacity,
            n_threads=self.n_threads,
        )
        self._buffers = Buffers(
            self.config, self._weights, self._cache, self._team, self._plan, self.n_batch
        )
        self._pace = Pace(self.config, self.n_threads)
        self._final_norm = file.vector("model.norm.weight")
        self._decoder = decoder().address
        self._step = np.zeros(1, STEP)
        self._step["model"] = self._buffers.model.ctypes.data
        self._step["layers"] = self._weights.layers.ctypes.data
        self._step["linears"] = self._weights.linears.ctypes.data
        self._stepwise: Stepwise | None = None
        if observer is not None:
            self._stepwise = Stepwise(
                self.config, self._buffers, self._cache, self._team, self._step, observer
            )

    def evaluate(
        self,
        tokens: Sequence[int],
        *,
        position: int,
        slot: int = 0,
        all_logits: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
        check: Callable[[], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Evaluate consecutive tokens of one sequence.

        Parameters
        ----------
        tokens : sequence of int
            Not empty. Whatever the slot held from `position` on is forgotten.
        position : int
            Of the first token; the slot must hold the positions before it.
        slot : int
        all_logits : bool
            Logits of every token instead of the last one's.
        on_progress : callable, optional
            Called as (tokens done, tokens in all) between chunks of at most `n_batch`. If
            it raises, the positions before `position + done` stay valid.
        check : callable, optional
            Called every tenth of a second or so, to end an evaluation soon by an
            exception; chunks then follow the measured pace.

        Returns
        -------
        float32, (1, vocab_size) or (n_tokens, vocab_size)

        Raises
        ------
        ContextLengthError
            The tokens do not fit `n_ctx`.
        ValueError
            A token, the position or the slot is out of range.
        """
        n_tokens = len(tokens)
        if n_tokens == 0:
            raise ValueError("tokens: expected at least one")
        # All of it before anything is computed: the first chunks may take minutes.
        ids = np.asarray(tokens)
        check_range("token", ids, self.config.vocab_size)
        self._check_context(position + n_tokens - 1)
        check_range("position", np.asarray([position]), self.n_ctx)
        check_range("slot", np.asarray([slot]), self.n_slots)
        ids = ids.astype(np.int32)
        positions = np.arange(position, position + n_tokens, dtype=np.int32)
        slots = np.full(n_tokens, slot, np.int32)
        logits = []
        first = 0
        while first < n_tokens:
            n_together = self.n_batch if check is None else self._pace.n_tokens(self.n_batch)
            chunk = slice(first, min(first + n_together, n_tokens))
            if all_logits:
                outputs = range(chunk.stop - first)
            else:
                outputs = range(chunk.stop - first)[-1:] if chunk.stop == n_tokens else range(0)
            batch = ids[chunk], positions[chunk], slots[chunk]
            logits.append(self._compute(*batch, outputs, check))
            if on_progress is not None and chunk.stop < n_tokens:
                on_progress(chunk.stop, n_tokens)
            first = chunk.stop
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def hidden(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.float32]:
        """Evaluate one ragged batch for what the output head would read.

        Parameters
        ----------
        tokens, positions, slots : int32, (n_tokens,)
            As `forward` takes them.

        Returns
        -------
        float32, (n_tokens, hidden_size)
            The last layer's output of every token, normalized.

        Raises
        ------
        ContextLengthError, ValueError
            As `forward`.
        """
        self.forward(tokens, positions, slots, ())
        states = self._buffers.floats("residual", len(tokens))[:, : self.config.hidden_size]
        return rms_norm(states, self._final_norm, self.config.rms_norm_eps)

    def adapt(self, adapter: Adapter | None) -> None:
        """Compute with an adapter from the next step on, or with None as the file says.

        Whatever the slots hold is of another model then: positions begin at 0 again.

        Parameters
        ----------
        adapter : Adapter or None
            Of this model's shapes.

        Raises
        ------
        OutOfMemoryError
            This machine does not grant the memory that a step works in besides.
        """
        bind(adapter, self._weights.linears, self._buffers)
        self._adapter = adapter

    def read_out(self, states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return what the output head makes of states of the residual stream.

        Parameters
        ----------
        states : float32, (n_states, hidden_size)
            At most `n_batch`, before the final norm: what `hidden` returns is after it.

        Returns
        -------
        float32, (n_states, vocab_size)
            Of the last layer's output of a token, its logits, to the bit.
        """
        nothing = np.zeros(len(states), np.int32)
        which = nothing, nothing, nothing, range(len(states))
        batch = Batch(self.config, self._rotary, self._plan, *which)
        self._step["batch"] = batch.record.ctypes.data
        residual = self._buffers.floats("residual", len(states))
        residual[:] = 0
        residual[:, : self.config.hidden_size] = states
        self._step["first_layer"] = self._step["end_layer"] = self.config.num_hidden_layers
        self._team.run(self._decoder, self._step.ctypes.data)
        return batch.logits

    @property
    def kv_layout(self) -> KvLayout:
        """Where keys and values lie, and what they are held in."""
        return self._cache

    def cache_bytes(self, n_positions: int) -> int:
        """Bytes that `read_cache` returns for so many positions."""
        return self._cache.bytes_of(n_positions)

    def read_cache(self, n_positions: int, slot: int = 0) -> npt.NDArray[np.uint8]:
        """Copy the keys and values of a sequence's first positions.

        Parameters
        ----------
        n_positions : int
            Which the slot must hold.
        slot : int

        Returns
        -------
        uint8, (2, n_layers, n_kv_heads, n_chunks, chunk_bytes)
            What `write_cache` takes, of any engine with the same model and `kv_type`.

        Raises
        ------
        ValueError
            The count or the slot is out of range.
        """
        check_range("n_positions", np.asarray([n_positions]), self.n_ctx + 1)
        check_range("slot", np.asarray([slot]), self.n_slots)
        return self._cache.read(slot, n_positions)

    def write_cache(self, chunks: npt.NDArray[np.uint8], slot: int = 0) -> None:
        """Have a slot hold the positions whose keys and values `read_cache` copied.

        Parameters
        ----------
        chunks : uint8, (2, n_layers, n_kv_heads, n_chunks, chunk_bytes)
        slot : int

        Raises
        ------
        ValueError
            They do not fit this engine's cache, or the slot is out of range.
        """
        check_range("slot", np.asarray([slot]), self.n_slots)
        self._cache.write(slot, chunks)

    def forward(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        outputs: Sequence[int],
    ) -> npt.NDArray[np.float32]:
        """Evaluate one ragged batch.

        Parameters
        ----------
        tokens, positions, slots : int32, (n_tokens,)
            At most `n_batch` tokens; those of one slot stand together, positions ascending.
        outputs : sequence of int
            Indices of the tokens whose logits are wanted.

        Returns
        -------
        float32, (len(outputs), vocab_size)

        Raises
        ------
        ContextLengthError
            A position is past `n_ctx`.
        ValueError
            The arrays' lengths do not agree, or something is out of range or out of order.
        """
        n_tokens = len(tokens)
        if not 0 < n_tokens <= self.n_batch:
            raise ValueError(f"batch: expected 1 to {self.n_batch} tokens, found {n_tokens}")
        if not len(positions) == len(slots) == n_tokens or len(outputs) > self.n_batch:
            raise ValueError(
                f"batch of {n_tokens} tokens: found {len(positions)} positions, "
                f"{len(slots)} slots and {len(outputs)} outputs"
            )
        check_range("token", tokens, self.config.vocab_size)
        check_range("slot", slots, self.n_slots)
        check_range("output", np.asarray(outputs, np.int64), n_tokens)
        self._check_context(int(positions.max()))
        check_range("position", positions, self.n_ctx)
        check_order(positions, slots)
        return self._compute(tokens, positions, slots, outputs)

    def _compute(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        outputs: Sequence[int],
        check: Callable[[], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """`forward` of what has been checked."""
        if self._team.is_left_behind:  # another thread may have been in a step when it forked
            self._buffers.clear_arrivals()
        batch = Batch(self.config, self._rotary, self._plan, tokens, positions, slots, outputs)
        self._step["batch"] = batch.record.ctypes.data
        n_layers = self.config.num_hidden_layers
        n_together = self._pace.n_layers(len(tokens))
        if self._stepwise is not None:
            self._stepwise.run(batch, positions, slots, outputs, n_together, check)
            return batch.logits
        started = time.perf_counter()
        for first in range(0, n_layers, n_together):
            if check is not None:
                check()
            self._step["first_layer"] = first
            self._step["end_layer"] = min(first + n_together, n_layers)
            self._team.run(self._decoder, self._step.ctypes.data)
        self._pace.measured(len(tokens), n_layers, time.perf_counter() - started)
        return batch.logits

    def _check_context(self, last_position: int) -> None:
        if last_position >= self.n_ctx:
            raise ContextLengthError(
                f"position {last_position} does not fit the context of {self.n_ctx} "
                "tokens; shorten the text or choose a larger n_ctx"
            )

    def close(self) -> None:
        """Stop the threads; the engine is not used after this."""
        self._team.close()
