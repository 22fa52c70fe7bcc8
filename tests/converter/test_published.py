"""Published digests: found beside the files in three places, and held against what is there."""

from __future__ import annotations

import hashlib
import os
import time

import pytest
from tiny_hf import write_repository

from converter.hashing import SourceHashes
from converter.pipeline import convert
from converter.published import published_digest
from qllama.errors import ConversionError

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


def in_client_cache(directory, digest=SHA256):
    """Lay a file out as the client's cache does."""
    blob = directory / "blobs" / digest
    blob.parent.mkdir()
    blob.write_bytes(CONTENT)
    snapshot = directory / "snapshots" / "0123" / "model.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(os.path.relpath(blob, snapshot.parent))
    return snapshot


def downloaded(directory, digest=SHA256):
    """Leave the record that the client leaves beside a file that it downloaded."""
    file = directory / "model.safetensors"
    file.write_bytes(CONTENT)
    write_record(file, f"0123\n{digest}\n{time.time()}\n")
    return file


def write_record(file, text):
    record = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(text)


def from_meta(directory, digest=MD5):
    file = directory / "consolidated.00.pth"
    file.write_bytes(CONTENT)
    lines = f"{'0' * 32}  params.json\n{digest}  {file.name}\n"
    (directory / "checklist.chk").write_text(lines)
    return file


@pytest.mark.parametrize(
    ("lay_out", "algorithm", "digest"),
    [(in_client_cache, "sha256", SHA256), (downloaded, "sha256", SHA256), (from_meta, "md5", MD5)],
)
def test_published_digest_is_found_and_is_that_of_the_file(tmp_path, lay_out, algorithm, digest):
    file = lay_out(tmp_path)
    found = published_digest(file)
    assert (found.algorithm, found.digest) == (algorithm, digest)
    with SourceHashes([file], {}) as hashes:
        assert hashes.finish(lambda *_: None) == {file: SHA256}


@pytest.mark.parametrize("lay_out", [in_client_cache, downloaded])
def test_published_git_hash_of_a_small_file_is_none(tmp_path, lay_out):
    assert published_digest(lay_out(tmp_path, "0" * 40)) is None


def test_published_digest_of_a_file_that_was_changed_since_is_none(tmp_path):
    file = downloaded(tmp_path)
    later = file.stat().st_mtime + 100
    os.utime(file, (later, later))
    assert published_digest(file) is None


@pytest.mark.parametrize("record", ["", "0123\n", f"0123\n{SHA256}\nsoon\n"])
def test_published_damaged_record_is_none(tmp_path, record):
    file = downloaded(tmp_path)
    write_record(file, record)
    assert published_digest(file) is None


def test_published_digest_of_a_plain_file_is_none(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(CONTENT)
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "checklist.chk").write_text(f"{MD5}  other.pth\nnonsense\n")
    assert published_digest(file) is published_digest(tmp_path / "link") is None


@pytest.mark.parametrize("shards", [0, 2])
def test_convert_file_that_is_not_the_published_one_is_refused(tmp_path, shards):
    directory = write_repository(tmp_path / "m", shards=shards)
    file = sorted(directory.glob("*.safetensors"))[-1]
    write_record(file, f"0123\n{SHA256}\n{time.time()}\n")
    with pytest.raises(ConversionError, match=rf"expected sha256 {SHA256} as .*metadata") as caught:
        convert(directory, tmp_path / "out.qlm", type="q8")
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
