"""What a model takes to run: arithmetic, memory, and time on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qllama.bench.counts import ModelCounts
from qllama.bench.estimate import TYPICAL_SHARE, tokens_per_second
from qllama.bench.plan import Test
from qllama.cli.inspection.subject import Storage
from qllama.config import ModelConfig
from qllama.errors import ContextLengthError
from qllama.memory import available_bytes
from qllama.model.footprint import Footprint

__all__ = [
    "ContextFacts",
    "MachineFacts",
    "RunFacts",
    "all_run_facts",
    "chosen_contexts",
    "context_facts",
    "kv_n_bytes_per_token",
]

_USUAL_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What estimates of speed and memory start from.

    Parameters
    ----------
    n_threads : int
    read_gb_s : float or None
        How fast they read memory together; None where it was not measured.
    free_n_bytes : int
        Memory that can be filled.
    typical_share : float
        Of `read_gb_s` that generating is taken to reach.
    """

    n_threads: int
    read_gb_s: float | None
    free_n_bytes: int
    typical_share: float = TYPICAL_SHARE

    @classmethod
    def of(cls, n_threads: int, read_gb_s: float | None) -> MachineFacts:
        """Describe this machine.

        Parameters
        ----------
        n_threads, read_gb_s
            As the class has them.
        """
        return cls(n_threads, read_gb_s, available_bytes())


@dataclass(frozen=True, slots=True)
class ContextFacts:
    """What the last token of a context costs, and the context itself.

    Parameters
    ----------
    n_ctx : int
        Tokens, that one included.
    macs, flops : int
        Multiply-adds of the matrices and of attention, and operations: two each.
    kv_n_bytes, kv_q8_n_bytes : int
        The cache of keys and values, of either type.
    """

    n_ctx: int
    macs: int
    flops: int
    kv_n_bytes: int
    kv_q8_n_bytes: int


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What running takes, with a context that is full.

    Parameters
    ----------
    storage : str
        The preset that the weights are stored by.
    bits_per_weight : float
    n_ctx : int
    weights_n_bytes, kv_n_bytes, buffers_n_bytes, memory_n_bytes : int
        The last is the sum of the others. Keys and values are `f16`.
    read_n_bytes : int
        What the last token reads.
    first_tokens_per_s, tokens_per_s : float or None
        Estimates for the first token and for the last; None where the machine's speed was
        not measured.
    """

    storage: str
    bits_per_weight: float
    n_ctx: int
    weights_n_bytes: int
    kv_n_bytes: int
    buffers_n_bytes: int
    memory_n_bytes: int
    read_n_bytes: int
    first_tokens_per_s: float | None
    tokens_per_s: float | None


def chosen_contexts(config: ModelConfig, n_ctx: int | None) -> tuple[int, ...]:
    """Return the lengths of context to show.

    Parameters
    ----------
    config : ModelConfig
    n_ctx : int or None
        The one that the user wants, 0 for the longest; None for a usual one and the longest.

    Raises
    ------
    ContextLengthError
        When the model has no room for `n_ctx`.
    """
    limit = config.max_position_embeddings
    if n_ctx is None:
        return (_USUAL_CONTEXT, limit) if limit > _USUAL_CONTEXT else (limit,)
    if n_ctx > limit:
        raise ContextLengthError(
            f"-c: expected 0 (the model's own limit) to {limit} tokens, found {n_ctx}"
        )
    return (n_ctx or limit,)


def kv_n_bytes_per_token(config: ModelConfig, kv_type: str) -> int:
    """Count what one token takes in the cache of keys and values.

    Parameters
    ----------
    config : ModelConfig
    kv_type : str
        `f16` or `q8`.
    """
    return ModelCounts.of_tensors(config, (), kv_type).kv_bytes


def context_facts(config: ModelConfig, storage: Storage, n_ctx: int) -> ContextFacts:
    """Count what does not depend on the types of the weights.

    Parameters
    ----------
    config : ModelConfig
    storage : Storage
        Any of the model's.
    n_ctx : int
    """
    counts = ModelCounts.of_tensors(config, storage.tensors, "f16")
    flops = counts.operations(_last_token(n_ctx))
    f16, q8 = (
        Footprint.of(config, (), n_ctx=n_ctx, n_threads=1, kv_type=kv_type).kv_n_bytes
        for kv_type in ("f16", "q8")
    )
    return ContextFacts(n_ctx, flops // 2, flops, f16, q8)


def _run_facts(
    config: ModelConfig, storage: Storage, n_ctx: int, machine: MachineFacts
) -> RunFacts:
    counts = ModelCounts.of_tensors(config, storage.tensors, "f16")
    types = {t.type for t in storage.tensors if len(t.shape) == 2}
    taken = Footprint.of(config, types, n_ctx=n_ctx, n_threads=machine.n_threads)
    speed = machine.read_gb_s
    return RunFacts(
        storage=storage.name,
        bits_per_weight=8 * counts.n_bytes / counts.n_params,
        n_ctx=n_ctx,
        weights_n_bytes=counts.n_bytes,
        kv_n_bytes=taken.kv_n_bytes,
        buffers_n_bytes=taken.buffers_n_bytes,
        memory_n_bytes=counts.n_bytes + taken.kv_n_bytes + taken.buffers_n_bytes,
        read_n_bytes=counts.decode_bytes(_last_token(n_ctx)),
        first_tokens_per_s=None if speed is None else tokens_per_second(counts, 1, speed),
        tokens_per_s=None if speed is None else tokens_per_second(counts, n_ctx, speed),
    )


def all_run_facts(
    config: ModelConfig,
    storages: Sequence[Storage],
    contexts: Sequence[int],
    machine: MachineFacts,
) -> tuple[RunFacts, ...]:
    """Count what running takes, for every storage with every context.

    Parameters
    ----------
    config : ModelConfig
    storages : sequence of Storage
    contexts : sequence of int
    machine : MachineFacts
    """
    return tuple(_run_facts(config, s, n_ctx, machine) for s in storages for n_ctx in contexts)


def _last_token(n_ctx: int) -> Test:
    return Test(n_prompt=0, n_gen=1, depth=n_ctx - 1)
