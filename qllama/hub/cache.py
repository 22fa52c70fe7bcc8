"""The cache of converted models.

Owns the names of its files, the lock that keeps two processes from making the
same one, and the scratch directory that is gone whatever happens. A file under a
model's name is whole: the converter renames it into place. Fetches nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qllama.errors import ModelNotFoundError, QllamaError
from qllama.format.reader import QlmFile
from qllama.paths import cache_dir
from qllama.progress import OnProgress

__all__ = ["is_ready", "locked", "model_path", "models_dir", "require_space", "scratch"]


def models_dir() -> Path:
    """Directory of the models, there or not."""
    return cache_dir() / "models"


def model_path(name: str, type_name: str) -> Path:
    """Path of the model `name` converted with the preset `type_name`, there or not."""
    return models_dir() / f"{name}-{type_name}.qlm"


def is_ready(path: Path) -> bool:
    """Whether a usable model is there; one of another format version, say, is made anew."""
    if not path.is_file():
        return False
    try:
        QlmFile.open(path).close()
    except QllamaError:
        return False
    return True


@contextmanager
def locked(path: Path, on_progress: OnProgress) -> Iterator[None]:
    """Hold the right to make the model at `path`; waits for a process that holds it.

    Parameters
    ----------
    path : Path
        Of the model.
    on_progress : callable
        Told once when there is a wait.

    Raises
    ------
    ModelNotFoundError
        When the cache directory cannot be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_progress(f"waiting for another qllama that makes {path.name}", 0, 0)
            lock.acquire()
    except OSError as e:
        raise ModelNotFoundError(
            f"{path.parent}: the cache cannot be used: {e.strerror or e}; "
            "QLLAMA_CACHE_DIR names another directory"
        ) from e
    try:
        yield
    finally:
        lock.release()


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Make an empty directory beside `path` for the time of the block; needs the lock.

    What a killed process left there is removed first.
    """
    directory = path.with_name(f".{path.name}.fetch")
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
    except OSError as e:
        raise ModelNotFoundError(f"{directory}: cannot be made: {e.strerror or e}") from e
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def require_space(name: str, n_bytes: int, directory: Path, variable: str) -> None:
    """Refuse a download that the disk cannot hold, before it begins.

    Parameters
    ----------
    name : str
        Of the model, for the message.
    n_bytes : int
        That the download takes.
    directory : Path
        Where it will lie; need not be there yet.
    variable : str
        What would name another place for it, in the environment or as an argument.

    Raises
    ------
    ModelNotFoundError
        When fewer bytes are free; names both numbers.
    """
    there = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < n_bytes:
        raise ModelNotFoundError(
            f"{name}: no space to download it: it needs {n_bytes} bytes, {free} are free in "
            f"{there}; free some (`qllama list`, `qllama rm`), or have {variable} name a "
            "directory on another disk"
        )
