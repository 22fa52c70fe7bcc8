"""From the MODEL that a user typed to an opened file or a loaded model.

Owns the order of the first run (fetch, convert, compile) and its progress.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qllama.cli.options import DEFAULT_WEIGHT_TYPE
from qllama.cli.progress import ProgressReport, notice
from qllama.cli.runtime import RuntimeOptions

if TYPE_CHECKING:
    from qllama.api import Llama

__all__ = ["choose_template", "compilation_progress", "load_model", "model_path"]


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
    draft = None if runtime.draft_model is None else model_path(runtime.draft_model)
    adapters = _adapters(runtime.lora)
    # Kernels that are compiled already take up to a second to load on a busy machine.
    compiling = ProgressReport(patience=1.5)
    with _objects_that_stay(), ProgressReport() as reading, compiling:
        from qllama.api import Llama

        report_compilation = compilation_progress(compiling)

        def on_compile(kernel: str, done: int, total: int) -> None:
            # One bar at a time, and each has patience of its own.
            reading.close()
            report_compilation(kernel, done, total)

        return Llama(
            path,
            n_ctx=runtime.n_ctx,
            n_threads=runtime.n_threads,
            n_batch=runtime.n_batch,
            kv_type=runtime.kv_type,
            use_mmap=runtime.use_mmap,
            lora=adapters,
            draft_model=draft,
            on_load=partial(reading.report, "reading the model"),
            on_compile=on_compile,
        )


def _adapters(arguments: tuple[str, ...]) -> list[tuple[Path, float]]:
    """Read each DIR or DIR=SCALE; imports the converter where there are any."""
    if not arguments:
        return []
    from converter.adapter import adapter_argument

    return [adapter_argument(text) for text in arguments]


def choose_template(llm: Llama, file: Path | None) -> None:
    """Have `llm` chat by the template in `file`, or plainly where the model has none.

    Parameters
    ----------
    llm : Llama
    file : Path or None
        None is the model's own template. A model without one says so on stderr and
        then continues the text of the conversation.

    Raises
    ------
    TokenizerError
        When the file cannot be read or is no template; names the line.
    """
    if file is not None:
        llm.chat_template = file
    elif llm.chat_template is None:
        from qllama.tokenizer.chat import PLAIN

        llm.chat_template = PLAIN
        notice(
            "qllama: the model has no chat template: it continues the text as it is; "
            "--chat-template FILE gives it one"
        )


@contextmanager
def _objects_that_stay() -> Iterator[None]:
    """Look for no garbage while loading, nor ever again among what was loaded.

    It is a quarter of a million objects, most of them numba's. To go through them time
    and again, last of all at exit, took a quarter of a small model's start to finish.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
