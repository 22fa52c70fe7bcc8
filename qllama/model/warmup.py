"""Compiles or loads the kernels a model needs, one by one, telling the progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qllama.kernels.linear import linear
from qllama.kernels.selection import compile_selection
from qllama.kernels.team import compile_team
from qllama.kernels.weight_kernels import WEIGHT_KERNELS
from qllama.model.decoder import decoder
from qllama.model.stages import stages

__all__ = ["OnCompile", "warmup"]

#: Called as (name of the kernel that comes next, kernels done, kernels in all).
OnCompile = Callable[[str, int, int], None]


def warmup(
    weight_types: Iterable[str] | None = None,
    on_compile: OnCompile | None = None,
    *,
    with_stages: bool = False,
) -> None:
    """Make the kernels ready: compiled once a machine, then loaded from the user's cache.

    Parameters
    ----------
    weight_types : iterable of str, optional
        Types of the matrices; default all there are. A `q8` cache takes `q8_0`, too.
    on_compile : callable, optional
    with_stages : bool
        The decoder in stages, too, for an observer; done with all types in any case.
    """
    all_types = [kernel.name for kernel in WEIGHT_KERNELS]
    wanted = set(all_types if weight_types is None else weight_types)
    jobs: list[tuple[str, Callable[[], object]]] = [
        (f"{name} matrix product", lambda name=name: linear(name))  # type: ignore[misc]
        for name in all_types
        if name in wanted
    ]
    jobs += [("decoder", _compile_decoder), ("sampling", compile_selection)]
    if with_stages or weight_types is None:
        jobs.append(("decoder in stages", stages))
    for done, (name, job) in enumerate(jobs):
        if on_compile is not None:
            on_compile(name, done, len(jobs))
        job()
    if on_compile is not None:
        on_compile("", len(jobs), len(jobs))


def _compile_decoder() -> None:
    compile_team()
    decoder()
