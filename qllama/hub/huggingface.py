"""Models in repositories on the Hugging Face hub.

Owns the notation `org/name[:FILE or TYPE]`, the download and the wording of what the
hub refuses. The client library does the rest: endpoint,
credentials, retries, and its own cache, which other programs share.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qllama.checksum import file_sha256
from qllama.errors import ModelNotFoundError, QllamaError
from qllama.hub import cache
from qllama.hub.checkpoint import Checkpoint
from qllama.hub.choice import choose, matching
from qllama.progress import OnProgress

__all__ = ["HubReference", "Place", "explain", "fetch", "parse", "search"]

_REFERENCE = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<want>[\w.-]+(/[\w.-]+)*))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository, and what is wanted of it.

    Parameters
    ----------
    repo : str
        `org/name`.
    want : str or None
        A file name, or a weight type that a file name ends with.
    """

    repo: str
    want: str | None = None

    @property
    def cache_name(self) -> str:
        """Name for the cache; one repository may be there several times."""
        name = self.repo if self.want is None else f"{self.repo}--{self.want}"
        return name.replace("/", "--")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the client keeps what it downloads.

    Parameters
    ----------
    cache_dir : Path or None
        Another cache than the client's own.
    local_dir : Path or None
        A directory for the files as they are, instead of a cache.
    """

    cache_dir: Path | None = None
    local_dir: Path | None = None


def parse(text: str) -> HubReference | None:
    """Read `org/name`, `org/name:file.gguf` or `org/name:q8_0`; None for anything else."""
    match = _REFERENCE.fullmatch(text)
    if match is None or match["repo"].lower().endswith((".gguf", ".qlm")):
        return None
    return HubReference(match["repo"], match["want"])


def search(repo: str, pattern: str) -> HubReference:
    """Return what a shell pattern for file names means in a repository.

    Parameters
    ----------
    repo : str
        `org/name`.
    pattern : str
        As `*Q8_0.gguf`.

    Raises
    ------
    ModelNotFoundError
        When it does not match one model, or the hub refuses; see `fetch`.
    """
    from huggingface_hub import HfApi

    reference = HubReference(repo, pattern)
    try:
        names = [file.rfilename for file in HfApi(_endpoint()).model_info(repo).siblings or ()]
    except Exception as e:  # see fetch
        raise explain(reference, e) from e
    name = matching(repo, pattern, names)
    found = parse(f"{repo}:{name}")
    if found is None:
        raise ModelNotFoundError(
            f"{repo}: {name!r}: expected a file name of letters, digits, '.', '_' and '-'; "
            "download it and convert the file"
        )
    return found


def _endpoint() -> str | None:
    # The client reads the variable once, when it is imported.
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def fetch(
    reference: HubReference, on_progress: OnProgress, place: Place | None = None
) -> Checkpoint:
    """Download a model of a repository into the hub client's own cache.

    Parameters
    ----------
    reference : HubReference
        What to fetch.
    on_progress : callable
        Told of the download and of the verification.
    place : Place, optional
        Where else to download it to.

    Raises
    ------
    ModelNotFoundError
        When there is no such repository or file, it may not be read, the hub cannot
        be reached, the disk is too small, or a GGUF file is not the one that the hub describes.
    UnsupportedModelError, ConversionError
        When its `config.json` tells that qllama does not run it; the weights are not
        fetched then.
    Exception
        What `on_progress` raises, as it is.
    """
    from huggingface_hub import HfApi, hf_hub_download

    endpoint, place = _endpoint(), place or Place()
    try:
        info = HfApi(endpoint=endpoint).model_info(reference.repo, files_metadata=True)
        found = {file.rfilename: file for file in info.siblings or ()}
        choice = choose(reference.repo, reference.want, list(found))
        sizes = {name: found[name].size or 0 for name in choice.files}
        _require_space(reference.repo, info.sha, sizes, place)
        total = sum(sizes.values())
        before = 0
        paths = {}
        for name in choice.files:
            bar = _bar_class(f"downloading {reference.repo}", on_progress, before, total)
            paths[name] = Path(
                hf_hub_download(
                    reference.repo,
                    name,
                    revision=info.sha,
                    endpoint=endpoint,
                    tqdm_class=bar,
                    cache_dir=place.cache_dir,
                    local_dir=place.local_dir,
                )
            )
            before += sizes[name]
            if name == "config.json":
                _check_runnable(paths[name])
    except _CallbackError as e:
        raise e.error from e.error.__cause__
    except QllamaError:
        raise
    except Exception as e:
        # Transport errors have no common base across the client's versions.
        raise explain(reference, e) from e
    path = paths[choice.main]
    if len(paths) > 1:
        # The converter compares each shard with the hash that the client's cache has.
        return Checkpoint(path, origin=f"hf:{reference.repo}@{info.sha}")
    lfs = found[choice.main].lfs
    expected = None if lfs is None else lfs.sha256
    if expected is not None:
        _verify(reference, path, expected, on_progress)
    return Checkpoint(path, f"hf:{reference.repo}/{choice.main}@{info.sha}", expected)


def _require_space(repo: str, revision: str | None, sizes: Mapping[str, int], place: Place) -> None:
    """Refuse to download files that the disk cannot hold; those that are there need nothing."""
    from huggingface_hub import constants, try_to_load_from_cache

    def is_there(name: str) -> bool:
        if place.local_dir is not None:
            return (place.local_dir / name).is_file()
        found = try_to_load_from_cache(repo, name, place.cache_dir, revision)
        return isinstance(found, str)

    missing = sum(n_bytes for name, n_bytes in sizes.items() if not is_there(name))
    directories = {
        "local_dir": place.local_dir,
        "cache_dir": place.cache_dir,
        "HF_HOME": Path(constants.HF_HUB_CACHE),
    }
    name, directory = next((name, d) for name, d in directories.items() if d is not None)
    cache.require_space(repo, missing, directory, name)


def _check_runnable(config: Path) -> None:
    from converter.hf_config import check_runnable
    from converter.json_files import read_json_object

    check_runnable(config, read_json_object(config))


def _verify(reference: HubReference, path: Path, expected: str, on_progress: OnProgress) -> None:
    found = file_sha256(path, on_progress)
    if found != expected:
        raise ModelNotFoundError(
            f"{reference.repo}: {path} is not the file that the hub describes: expected SHA-256 "
            f"{expected}, found {found}; remove it and try again"
        )


class _CallbackError(BaseException):
    """Carries what a progress callback raised past everybody who handles the hub's errors.

    Those are this module and the client, which would take an OSError, say, for the network's.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _bar_class(stage: str, on_progress: OnProgress, before: int, total: int) -> Any:
    """Make a progress bar class for the client that draws nothing and reports.

    Parameters
    ----------
    before, total : int
        Bytes of the files that are there already, and of all files.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class Reporter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            try:
                on_progress(stage, before + int(self.n), total)
            except Exception as e:
                raise _CallbackError(e) from e

    return Reporter


def explain(reference: HubReference, error: Exception) -> ModelNotFoundError:
    """Say in one line what the hub, or the way to it, refused.

    Parameters
    ----------
    reference : HubReference
        What was asked for.
    error : Exception
        What the client library raised.
    """
    from huggingface_hub import errors

    repo = reference.repo
    if isinstance(error, errors.GatedRepoError):
        why = (
            "the repository is gated: accept its terms on its page and log in "
            "(`hf auth login`, or set HF_TOKEN)"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = (
            "no such file here and no such repository on the Hugging Face hub, or a private "
            "one: check the name, or log in (`hf auth login`, or set HF_TOKEN)"
        )
    elif isinstance(error, errors.OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set, and the model is not in qllama's cache"
    else:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        why = f"the Hugging Face hub could not be reached or refused: {first_line}"
    return ModelNotFoundError(f"{repo}: {why}")
