"""Options of how a model is loaded and run, spelled as llama.cpp spells them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from qllama.config import DEFAULT_N_BATCH

__all__ = ["RuntimeOptions", "cache_type_options", "mmap_option", "runtime_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_cache_type = click.Choice(("f16", "q8_0"), case_sensitive=False)


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How a model is loaded and run.

    Parameters
    ----------
    n_ctx : int
        Context window in tokens; 0 is the model's own.
    n_threads : int or None
        None is one thread a physical core that this process may use.
    n_batch : int
        Prompt tokens evaluated together.
    kv_type : str
        What keys and values are held in: `f16` or `q8`.
    use_mmap : bool
        Map the model's file instead of reading it.
    lora : tuple of str
        LoRA adapters, as DIR or DIR=SCALE.
    draft_model : str or None
        A smaller model that guesses tokens; None looks them up in the text so far.
    """

    n_ctx: int
    n_threads: int | None
    n_batch: int
    kv_type: str = "f16"
    use_mmap: bool = True
    lora: tuple[str, ...] = ()
    draft_model: str | None = None


def cache_type_options(command: _Command) -> _Command:
    """Give `command` -ctk and -ctv; it receives `kv_type`, `f16` or `q8`."""

    @click.option(
        "-ctk",
        "--cache-type-k",
        type=_cache_type,
        help="Type of the key/value cache: q8_0 takes half the memory.  [default: f16]",
    )
    @click.option(
        "-ctv",
        "--cache-type-v",
        type=_cache_type,
        help="The same: one type serves both.  [default: that of -ctk]",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any, cache_type_k: str | None, cache_type_v: str | None, **kwargs: Any
    ) -> Any:
        if cache_type_k and cache_type_v and cache_type_k != cache_type_v:
            raise click.UsageError(
                f"-ctk is {cache_type_k} and -ctv is {cache_type_v}: expected one type for "
                "both; give one of them."
            )
        kv_type = "q8" if (cache_type_k or cache_type_v) == "q8_0" else "f16"
        return command(*args, kv_type=kv_type, **kwargs)

    return wrapper  # type: ignore[return-value]


mmap_option = click.option(
    "--mmap/--no-mmap",
    "use_mmap",
    default=True,
    help="Map the model's file, or read it into memory of the process' own.  [default: --mmap]",
)


def runtime_options(command: _Command) -> _Command:
    """Give `command` -c, -t, -b, -ctk, -ctv, --no-mmap, --lora: a RuntimeOptions, `runtime`."""

    @click.option(
        "-c",
        "--ctx-size",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Context window in tokens; 0 is the model's own.",
    )
    @click.option(
        "-t",
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="Compute threads.  [default: the physical cores this process may use]",
    )
    @click.option(
        "-b",
        "--batch-size",
        type=click.IntRange(min=1),
        default=DEFAULT_N_BATCH,
        show_default=True,
        metavar="N",
        help="Prompt tokens evaluated together.",
    )
    @cache_type_options
    @mmap_option
    @click.option(
        "--lora",
        multiple=True,
        metavar="DIR[=SCALE]",
        help="Compute the PEFT adapter in DIR beside the model, its weights times SCALE. May be "
        "given again.",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any,
        ctx_size: int,
        threads: int | None,
        batch_size: int,
        kv_type: str,
        use_mmap: bool,
        lora: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        runtime = RuntimeOptions(
            n_ctx=ctx_size,
            n_threads=threads,
            n_batch=batch_size,
            kv_type=kv_type,
            use_mmap=use_mmap,
            lora=lora,
        )
        return command(*args, runtime=runtime, **kwargs)

    return wrapper  # type: ignore[return-value]
