"""Models by name: fetched, converted and opened in one call, as llama-cpp-python does it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qllama.api.compatible import CompatibleModel
from qllama.notice import StageNotice
from qllama.progress import OnProgress

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PretrainedModel"]

_Path = str | os.PathLike[str]


class PretrainedModel(CompatibleModel):
    """How a `Llama` is made of a name."""

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        additional_files: Sequence[str] | None = None,
        local_dir: _Path | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: _Path | None = None,
        *,
        type: str = "q4",
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Self:
        """Open a model of the Hugging Face hub, downloaded and converted where needed.

        That is needed once: what is in qllama's cache is opened without asking the network.
        `HF_TOKEN`, `HF_HOME` and the like are heeded.

        Parameters
        ----------
        repo_id : str
            `org/name`; without `filename` whatever `qllama chat` takes for MODEL, as the
            name `smollm2-135m`.
        filename : str, optional
            A file of the repository, or a pattern that matches one model, as `*Q8_0.gguf`. By
            default the GGUF file with the least loss that is not unduly large, or else the
            weights in Hugging Face's layout.
        additional_files : sequence of str, optional
            Not needed: all parts of a split file are fetched anyway.
        local_dir : str or path, optional
            Directory to download to, instead of a cache.
        local_dir_use_symlinks : bool or str
            Of no effect, as in the client library.
        cache_dir : str or path, optional
            Cache to download to, instead of the client library's own.
        type : str
            What to convert to, as `qllama convert --type`.
        on_progress : callable, optional
            Given a stage, what is done of it and its total. By default a line on stderr
            tells of each stage.
        **options
            Of `Llama`, which says what else is raised.

        Raises
        ------
        ModelNotFoundError
            When there is no such repository or file, or it cannot be fetched.
        ConversionError, UnsupportedModelError, TokenizerError
            When it cannot be converted.
        """
        from qllama.hub.huggingface import Place
        from qllama.hub.resolve import resolve_model, resolve_repository

        report = on_progress or StageNotice()
        place = Place(*(None if path is None else Path(path) for path in (cache_dir, local_dir)))
        if filename is None:
            path = resolve_model(repo_id, type=type, place=place, on_progress=report)
        else:
            path = resolve_repository(repo_id, filename, type=type, place=place, on_progress=report)
        return cls(path, **options)
