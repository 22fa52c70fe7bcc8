"""Models in repositories on the Hugging Face hub.

Owns the notation `org/name[:FILE or TYPE]`, the choice of a GGUF file and the
wording of what the hub refuses. The client library does the rest: endpoint,
credentials, retries, and its own cache, which other programs share.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qllama.checksum import file_sha256
from qllama.errors import ModelNotFoundError
from qllama.hub.checkpoint import Checkpoint
from qllama.progress import OnProgress

__all__ = ["HubReference", "choose_file", "explain", "fetch", "parse"]

_REFERENCE = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<want>[\w.-]+(/[\w.-]+)*))?", re.ASCII
)
_PART_OF_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")

# Least loss first as far as a download of twice the size is not worth it: Q8_0 is nearly
# exact, anything below it is quantized a second time.
_PREFERRED = (
    *("Q8_0", "BF16", "F16", "FP16", "Q6_K", "Q5_K_M", "Q5_1", "Q5_K_S", "Q5_0"),
    *("Q4_K_M", "Q4_1", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q4_0", "F32"),
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


def parse(text: str) -> HubReference | None:
    """Read `org/name`, `org/name:file.gguf` or `org/name:q8_0`; None for anything else."""
    match = _REFERENCE.fullmatch(text)
    if match is None or match["repo"].lower().endswith((".gguf", ".qlm")):
        return None
    return HubReference(match["repo"], match["want"])


def choose_file(reference: HubReference, names: Sequence[str]) -> str:
    """Choose the GGUF file to convert.

    Parameters
    ----------
    reference : HubReference
        Says what is wanted.
    names : sequence of str
        All files of the repository.

    Raises
    ------
    ModelNotFoundError
        When there is no such file; lists what there is.
    """
    from converter.naming import weight_type

    ggufs = [n for n in names if n.lower().endswith(".gguf") and "mmproj" not in n.lower()]
    whole = [n for n in ggufs if not _PART_OF_SPLIT.search(n)]
    if not ggufs:
        raise ModelNotFoundError(
            f"{reference.repo}: no GGUF file in this repository, only {_listed(names)}; "
            "qllama converts GGUF files: look for a repository of the same model with them"
        )
    if not whole:
        raise ModelNotFoundError(
            f"{reference.repo}: its GGUF files are split in parts ({_listed(ggufs)}); download "
            "them into one directory, then give the path of the first"
        )
    if reference.want is None:
        return min(whole, key=_preference)
    want = reference.want.lower()
    chosen = [n for n in whole if n.lower() in (want, f"{want}.gguf")] or [
        n for n in whole if f"{weight_type(n)}_".lower().startswith(f"{want}_")
    ]
    if not chosen:
        raise ModelNotFoundError(
            f"{reference.repo}: no GGUF file {reference.want!r}; there is {_listed(whole)}"
        )
    return min(chosen, key=_preference)


def fetch(reference: HubReference, on_progress: OnProgress) -> Checkpoint:
    """Download the GGUF file of a repository into the hub client's own cache.

    Parameters
    ----------
    reference : HubReference
        What to fetch.
    on_progress : callable
        Told of the download and of the verification.

    Raises
    ------
    ModelNotFoundError
        When there is no such repository or file, it may not be read, the hub cannot
        be reached, or the file is not the one that the hub describes.
    Exception
        What `on_progress` raises, as it is.
    """
    from huggingface_hub import HfApi, hf_hub_download

    # The client reads the variable once, when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    try:
        info = HfApi(endpoint=endpoint).model_info(reference.repo, files_metadata=True)
        files = {file.rfilename: file for file in info.siblings or ()}
        name = choose_file(reference, list(files))
        path = Path(
            hf_hub_download(
                reference.repo,
                name,
                revision=info.sha,
                endpoint=endpoint,
                tqdm_class=_bar_class(f"downloading {reference.repo}", on_progress),
            )
        )
    except _CallbackError as e:
        raise e.error from e.error.__cause__
    except ModelNotFoundError:
        raise
    except Exception as e:
        # Transport errors have no common base across the client's versions.
        raise explain(reference, e) from e
    lfs = files[name].lfs
    expected = None if lfs is None else lfs.sha256
    if expected is not None:
        _verify(reference, path, expected, on_progress)
    return Checkpoint(path, origin=f"hf:{reference.repo}/{name}@{info.sha}", sha256=expected)


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


def _bar_class(stage: str, on_progress: OnProgress) -> Any:
    """Make a progress bar class for the client that draws nothing and reports."""
    from huggingface_hub.utils.tqdm import tqdm

    class Reporter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            try:
                on_progress(stage, int(self.n), int(self.total or 0))
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


def _preference(name: str) -> tuple[int, str]:
    from converter.naming import weight_type

    kind = weight_type(name)
    return (_PREFERRED.index(kind) if kind in _PREFERRED else len(_PREFERRED), name)


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more
