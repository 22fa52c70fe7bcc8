"""From what a user calls a model to the path of a ready `.qlm` file.

Owns the order in which a name is looked up, and the making of a cached model:
under a lock, in a scratch directory, visible only when whole. Knows no place
that models come from in detail.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from qllama.errors import ModelNotFoundError
from qllama.format.spec import MAGIC
from qllama.hub import cache, huggingface, pypi, registry
from qllama.hub.checkpoint import Checkpoint
from qllama.hub.installed import cached_names
from qllama.notice import notice
from qllama.progress import OnProgress, silent

__all__ = ["resolve_model", "resolve_repository"]


def resolve_model(
    name_or_path: str | os.PathLike[str] | None,
    *,
    type: str = "q4",
    place: huggingface.Place | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Return the path of a ready `.qlm` file; fetch and convert where needed.

    A path to a file wins. A checkpoint is converted into the cache once, and again
    when it has changed; any other file is returned as it is. Then come the names of
    `registry`, then directories of checkpoints, then `org/name` on the Hugging Face
    hub, optionally with `:FILE` or `:TYPE`, then the names of `cached_names`. What is in
    the cache is used without asking the network.

    Parameters
    ----------
    name_or_path : str, path or None
        None is the default model.
    type : str
        Preset to convert to, where a conversion is needed.
    place : huggingface.Place, optional
        Where to download from the hub to.
    on_progress : callable or None
        Called with a stage, the bytes done and the bytes in all.

    Raises
    ------
    ModelNotFoundError
        When there is no such file or name, or it cannot be fetched.
    ConversionError, UnsupportedModelError, TokenizerError
        When it cannot be converted.
    """
    from converter.recipe import preset

    type = preset(type).name
    report = on_progress or silent
    text = registry.DEFAULT_MODEL if name_or_path is None else os.fspath(name_or_path)
    if not text:  # as a path, it would be the current directory
        raise ModelNotFoundError("the model's name is empty; leave it out for the default model")
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # no such user: "~" is then a character as any other
        path = Path(text)
    if path.is_file():
        return _from_checkpoint(path, type, report) if _is_checkpoint(path) else path
    model = registry.find(text)
    if model is not None:
        found = model
        return _cached(found.name, type, lambda d: pypi.fetch(found, d, report), report)
    if path.is_dir():
        return _from_checkpoint(path, type, report)
    reference = huggingface.parse(text)
    if reference is None:
        # Compared with what is there: the text never becomes part of a path.
        if text in cached_names():
            return cache.models_dir() / f"{text}.qlm"
        raise ModelNotFoundError(
            f"{text}: no such file; a model is a .qlm file, a checkpoint, a name of "
            f"`qllama list`, one of the names {', '.join(registry.REGISTRY)}, or org/name on "
            "the Hugging Face hub"
        )
    return _of_repository(reference, type, place, report)


def resolve_repository(
    repo: str,
    filename: str,
    *,
    type: str = "q4",
    place: huggingface.Place | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Return the path of a ready `.qlm` file made of one of a repository's files.

    Parameters
    ----------
    repo : str
        `org/name` on the Hugging Face hub.
    filename : str
        Of a file, or a shell pattern that matches those of one model. What is in the cache
        is used without asking the network.
    type, on_progress
        As in `resolve_model`, which says what is raised.
    place : huggingface.Place, optional
        Where to download to.
    """
    from converter.recipe import preset

    type = preset(type).name
    whole = huggingface.parse(repo)
    if whole is None or whole.want is not None:
        raise ModelNotFoundError(f"{repo}: expected org/name, a repository on the Hugging Face hub")
    reference = huggingface.parse(f"{repo}:{filename}") or _matched(whole, filename, type)
    return _of_repository(reference, type, place, on_progress or silent)


def _matched(
    repository: huggingface.HubReference, pattern: str, type: str
) -> huggingface.HubReference:
    """Return what a pattern means: the one such file in the cache, else on the hub."""
    prefix = f"{repository.cache_name}--"
    names = [
        name.removeprefix(prefix).removesuffix(f"-{type}")
        for name in cached_names()
        if name.startswith(prefix) and name.endswith(f"-{type}")
    ]
    found = fnmatch.filter(names, pattern.replace("/", "--"))
    if len(found) == 1 and cache.is_ready(cache.model_path(f"{prefix}{found[0]}", type)):
        return huggingface.HubReference(repository.repo, found[0])
    return huggingface.search(repository.repo, pattern)


def _of_repository(
    reference: huggingface.HubReference,
    type: str,
    place: huggingface.Place | None,
    report: OnProgress,
) -> Path:
    name = reference.cache_name
    return _cached(name, type, lambda _: huggingface.fetch(reference, report, place), report)


def _cached(
    name: str, type: str, fetch: Callable[[Path], Checkpoint], on_progress: OnProgress
) -> Path:
    """Return the model `name` in the cache; make it from what `fetch(directory)` gets."""
    target = cache.model_path(name, type)
    if cache.is_ready(target):
        return target
    with cache.locked(target, on_progress):
        # Another process may have made it while this one waited.
        if cache.is_ready(target):
            return target
        from converter.pipeline import convert

        with cache.scratch(target) as directory:
            checkpoint = fetch(directory)
            report = convert(
                checkpoint.path,
                target,
                type,
                on_progress=on_progress,
                sha256=checkpoint.sha256,
                origin=checkpoint.origin,
            )
    for oddity in report.notices:
        notice(f"{target.name}: {oddity}")
    return target


def _from_checkpoint(path: Path, type: str, on_progress: OnProgress) -> Path:
    """Return the cached conversion of a checkpoint, dropping those of its older states."""
    from converter.naming import model_name

    path = path.resolve()
    where = f"{model_name(path)}-{_digest(str(path))}"
    target = _cached(f"{where}-{_state(path)}", type, lambda _: Checkpoint(path), on_progress)
    older = re.compile(rf"{re.escape(where)}-[0-9a-f]{{8}}-{re.escape(type)}\.qlm")
    for other in target.parent.iterdir():
        if older.fullmatch(other.name) and other != target:
            # Windows refuses while a process has it mapped; the next change tries again.
            # Its lock stays: without the file, one process could hold the lock on it
            # while the next makes, and locks, another of the same name.
            with suppress(OSError):
                other.unlink()
    return target


def _state(path: Path) -> str:
    """Digest of the sizes and times of a checkpoint's files."""
    from converter.sources.registry import files_of

    states = ((file, file.stat()) for file in files_of(path))
    return _digest(" ".join(f"{file} {s.st_size} {s.st_mtime_ns}" for file, s in states))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _is_checkpoint(path: Path) -> bool:
    """Whether the converter knows a file, which it need not be asked about a `.qlm` file."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as e:
        raise ModelNotFoundError(f"{path}: cannot be read: {e.strerror or e}") from e
    if start == MAGIC:
        return False
    from converter.sources.registry import detect

    return detect(path) is not None
