"""From the MODEL that a user typed to an opened file or a loaded model.

Owns the order of the first run (fetch, convert, compile) and its progress.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qllama.cli.options import DEFAULT_WEIGHT_TYPE, RuntimeOptions
from qllama.cli.progress import ProgressReport

if TYPE_CHECKING:
    from qllama.api import Llama

__all__ = ["compilation_progress", "load_model", "model_path"]


def model_path(model: str | None, weight_type: str = DEFAULT_WEIGHT_TYPE) -> Path:
    """Return the path of a ready `.qlm`, fetching and converting as needed.

    Parameters
    ----------
    model : str or None
        A path or a name; None is the default model.
    weight_type : str
        The preset to convert to, where a conversion is needed.

    Raises
    ------
    ModelNotFoundError
        When there is no such file or name, or it cannot be fetched.
    """
    from qllama.hub.resolve import resolve_model

    with ProgressReport() as progress:
        return resolve_model(model, type=weight_type, on_progress=progress.report)


def compilation_progress(progress: ProgressReport) -> Callable[[str, int, int], None]:
    """Return what reports to `progress` under one stage: the names of kernels say nothing."""
    stage = "compiling kernels for this CPU, once"
    return lambda kernel, done, total: progress.report(stage, done, total)


def load_model(model: str | None, runtime: RuntimeOptions) -> Llama:
    """Return `model` ready to answer.

    Parameters
    ----------
    model : str or None
        A path or a name; None is the default model.
    runtime : RuntimeOptions
        How to run it.
    """
    path = model_path(model)
    from qllama.api import Llama

    with ProgressReport() as progress:
        return Llama(
            path,
            n_ctx=runtime.n_ctx,
            n_threads=runtime.n_threads,
            n_batch=runtime.n_batch,
            kv_type=runtime.kv_type,
            on_compile=compilation_progress(progress),
        )
