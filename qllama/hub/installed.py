"""The models that are in the cache: what they are called, and how to find one again.

Owns what a name stands for there. A model is a file of the directory, found by comparing
names, so that no text of a user's ever becomes a path: nothing outside is in reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qllama.errors import ModelNotFoundError, QllamaError
from qllama.format.reader import QlmFile
from qllama.hub import cache, huggingface, registry

__all__ = ["CachedModel", "cached_models", "cached_names", "find", "find_all"]

_SUFFIX = ".qlm"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One file of the cache.

    Parameters
    ----------
    path : Path
    n_bytes : int
    modified : float
        Seconds since 1970.
    type : str or None
        Preset that it was converted with; None where the file cannot be read, as one of
        another version of qllama.
    origin : str or None
        Where it came from: a package, a repository on the hub, or a file's name.
    """

    path: Path
    n_bytes: int
    modified: float
    type: str | None
    origin: str | None

    @property
    def name(self) -> str:
        """What commands take for it."""
        return self.path.name.removesuffix(_SUFFIX)


def cached_names() -> list[str]:
    """Names of all models in the cache, in alphabetical order; opens none of them."""
    return [path.name.removesuffix(_SUFFIX) for path in _paths()]


def cached_models() -> list[CachedModel]:
    """Return all models in the cache, the newest first."""
    return sorted(map(_described, _paths()), key=lambda model: -model.modified)


def find_all(text: str) -> list[CachedModel]:
    """Return the models of the cache that `text` can mean, the newest first.

    Parameters
    ----------
    text : str
        A name of the list, the path of a file in the cache, or what was pulled: a
        registered name or `org/name`, which can be there in several weight types.
    """
    models = cached_models()
    exact = [model for model in models if model.name == text or _is_path(text, model)]
    if exact:
        return exact
    known, reference = registry.find(text), huggingface.parse(text)
    if known is not None:
        pulled = known.name
    elif reference is not None:
        pulled = reference.cache_name
    else:
        return []
    return [model for model in models if model.name == f"{pulled}-{model.type}"]


def find(text: str) -> CachedModel:
    """Return the one model of the cache that `text` means.

    Parameters
    ----------
    text : str
        As for `find_all`.

    Raises
    ------
    ModelNotFoundError
        When there is none, or it may be one of several; names them.
    """
    found = find_all(text)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(model.name for model in found))
        raise ModelNotFoundError(f"{text}: there are several of it in the cache: {names}; name one")
    where = "outside the cache" if text and Path(text).exists() else "no such model in the cache"
    raise ModelNotFoundError(f"{text or repr(text)}: {where}; `qllama list` shows what is there")


def _paths() -> list[Path]:
    """Files of models; what is being made has a name that begins with a dot."""
    try:
        entries = sorted(cache.models_dir().iterdir())
    except FileNotFoundError:
        return []
    return [
        path
        for path in entries
        if path.suffix == _SUFFIX and not path.name.startswith(".") and path.is_file()
    ]


def _described(path: Path) -> CachedModel:
    status = path.stat()
    kind = origin = None
    try:
        with QlmFile.open(path) as file:
            kind = file.recipe.get("name")
            origin = file.provenance.get("origin") or file.provenance.get("source")
    except QllamaError:
        pass  # it takes its space all the same, and can be removed
    return CachedModel(
        path,
        status.st_size,
        status.st_mtime,
        kind if isinstance(kind, str) else None,
        origin if isinstance(origin, str) else None,
    )


def _is_path(text: str, model: CachedModel) -> bool:
    """Whether `text` is the path of a model's own entry in the cache, not of what it links to."""
    path = Path(text)
    return path.name == model.path.name and path.parent.resolve() == model.path.parent.resolve()
