"""llama-cpp-python's constructor arguments that `Llama` has no parameter for.

Owns which of them are taken, since no result depends on them, and what is to be given
instead of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

__all__ = ["LlamaCppArguments", "check_arguments"]


class LlamaCppArguments(TypedDict, total=False):
    """Arguments that say where and how llama.cpp computes; nothing here depends on them."""

    n_gpu_layers: int
    split_mode: int
    main_gpu: int
    tensor_split: list[float] | None
    offload_kqv: bool
    op_offload: bool | None
    flash_attn: bool
    swa_full: bool | None
    n_ubatch: int
    n_threads_batch: int | None
    numa: bool | int
    no_perf: bool
    logits_all: bool
    embedding: bool


_INSTEAD = {
    "chat_format": "chat uses the model's own template; chat_template takes another",
    "last_n_tokens_size": "give each call its repeat_last_n",
    "seed": "give each call its seed",
    "type_k": "kv_type says what keys and values are held in",
    "type_v": "kv_type says what keys and values are held in",
    "use_mlock": "use_mmap=False reads the weights into memory of this process' own",
}


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse what is no argument of `LlamaCppArguments`.

    Parameters
    ----------
    given : mapping
        Keyword arguments by name.

    Raises
    ------
    TypeError
        Names the argument, and what stands in its place if anything does.
    """
    for name in given:
        if name in _INSTEAD:
            raise TypeError(f"{name}: qllama does not offer it; {_INSTEAD[name]}")
        if name not in LlamaCppArguments.__annotations__:
            raise TypeError(f"Llama() got an unexpected keyword argument {name!r}")
