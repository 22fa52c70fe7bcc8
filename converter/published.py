"""Digests of weight files that their publisher or downloader left beside them.

Owns where those are found: the Hugging Face client's cache and its records in a
directory, and Meta's `checklist.chk`. Computes none.

Reference: `huggingface_hub._local_folder`, `huggingface_hub.file_download`, and the
download scripts of the Llama releases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Published", "published_digest"]

# For files kept in LFS the hub's ETag is the SHA-256; for others it is a git hash, shorter.
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHECKLIST = "checklist.chk"
_CHECKLIST_LINE = re.compile(r"(?P<digest>[0-9a-f]{32}) [ *](\./)?(?P<name>.+)")


@dataclass(frozen=True)
class Published:
    """What a file should hash to.

    Parameters
    ----------
    algorithm : str
        As `hashlib.new` takes it.
    digest : str
        Lower-case hex.
    where : Path
        What says so.
    """

    algorithm: str
    digest: str
    where: Path


def published_digest(file: Path) -> Published | None:
    """Return what `file` should hash to, if anything beside it tells.

    Raises
    ------
    OSError
        When what tells cannot be read.
    """
    return _of_client_cache(file) or _of_client_record(file) or _of_checklist(file)


def _of_client_cache(file: Path) -> Published | None:
    """Files of the client's cache are links to blobs that are called by their ETag."""
    if not file.is_symlink():
        return None
    blob = file.readlink()
    if blob.parent.name != "blobs" or not _SHA256.fullmatch(blob.name):
        return None
    return Published("sha256", blob.name, file)


def _of_client_record(file: Path) -> Published | None:
    """Files downloaded into a directory have a record: commit, ETag, time."""
    record = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    if not record.is_file():
        return None
    lines = record.read_text(encoding="utf-8", errors="replace").split()
    try:
        # The record is of what was downloaded; who changes the file later may do so.
        current = file.stat().st_mtime - 1 <= float(lines[2])
    except (IndexError, ValueError):
        return None
    if not current or not _SHA256.fullmatch(lines[1]):
        return None
    return Published("sha256", lines[1], record)


def _of_checklist(file: Path) -> Published | None:
    checklist = file.with_name(_CHECKLIST)
    if not checklist.is_file():
        return None
    for line in checklist.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _CHECKLIST_LINE.fullmatch(line.strip())
        if match is not None and match["name"] == file.name:
            return Published("md5", match["digest"], checklist)
    return None
