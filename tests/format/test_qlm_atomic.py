"""No failure leaves a file under the target's name, or damages one that was there."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from qlm_sample import SPECS, contents, write_sample, writer

from qllama.errors import ConversionError
from qllama.format import QlmFile, partial

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")


HALF = """
import time
with writer(path) as file:
    file.write(SPECS[0].name, contents(SPECS[0]))
    print("ready", flush=True)
    time.sleep(60)
"""

LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (66000, 66000))
write_sample(path)
"""


def start(path: Path, code: str = HALF) -> subprocess.Popen[str]:
    """Start a process that runs `code` on `path`, by default writing half and waiting."""
    prelude = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from qlm_sample import SPECS, contents, write_sample, writer\n"
        f"path = Path({str(path)!r})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_writer_check_of_a_target_leaves_no_trace(tmp_path):
    (tmp_path / "m.qlm").write_bytes(b"old")
    writer(tmp_path / "m.qlm").check_target()
    assert names(tmp_path) == ["m.qlm"]
    assert (tmp_path / "m.qlm").read_bytes() == b"old"


def test_writer_check_of_a_target_refuses_as_writing_does(tmp_path):
    with pytest.raises(ConversionError, match="make the directory first"):
        writer(tmp_path / "absent" / "m.qlm").check_target()


@posix
def test_writer_killed_leaves_target_alone_and_next_run_cleans_up(tmp_path):
    path = tmp_path / "m.qlm"
    path.write_bytes(b"old")
    with start(path) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    write_sample(path)
    QlmFile.open(path).verify()
    assert names(tmp_path) == ["m.qlm"]


@posix
def test_writer_interrupted_removes_its_file(tmp_path):
    with start(tmp_path / "m.qlm") as process:
        assert process.stdout.readline() == "ready\n"
        assert len(names(tmp_path)) == 1
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.stderr.read()
    assert names(tmp_path) == []


@posix
def test_writer_two_at_once_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "m.qlm"
    with start(path) as process:
        assert process.stdout.readline() == "ready\n"
        # A live one's file is not rubbish, another target's never.
        (tmp_path / ".other.qlm.0123abcd.partial").write_bytes(b"")
        write_sample(path)
        assert len(names(tmp_path)) == 3
        QlmFile.open(path).verify()
        process.kill()


@posix
def test_writer_two_in_one_process_last_one_wins(tmp_path):
    path = tmp_path / "m.qlm"
    with writer(path, recipe={"n": 1}) as first:
        with writer(path, recipe={"n": 2}) as second:
            for spec in SPECS:
                first.write(spec.name, contents(spec))
                second.write(spec.name, contents(spec))
        assert QlmFile.open(path).recipe == {"n": 2}
    assert QlmFile.open(path).recipe == {"n": 1}
    assert names(tmp_path) == ["m.qlm"]


@posix
def test_writer_file_taken_for_rubbish_before_its_lock_is_made_anew(tmp_path, monkeypatch):
    lock, taken = partial._lock, []

    def lock_too_late(file, *, wait):
        if not taken:
            taken.append(file.name)
            Path(file.name).unlink()
        return lock(file, wait=wait)

    monkeypatch.setattr(partial, "_lock", lock_too_late)
    QlmFile.open(write_sample(tmp_path / "m.qlm")).verify()
    assert len(taken) == 1


@posix
def test_writer_syncs_the_file_then_names_it_then_syncs_the_directory(tmp_path, monkeypatch):
    path, seen = tmp_path / "m.qlm", []

    def sync(descriptor):
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))

    monkeypatch.setattr(partial.os, "fsync", sync)
    write_sample(path)
    assert seen == [(False, False), (True, True)]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_writer_exception_in_block_leaves_old_file(tmp_path, error):
    path = tmp_path / "m.qlm"
    path.write_bytes(b"old")

    def fail():
        with writer(path) as file:
            file.write(SPECS[0].name, contents(SPECS[0]))
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ["m.qlm"]
    assert path.read_bytes() == b"old"


@posix
def test_writer_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    path = write_sample(tmp_path / "m.qlm")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_writer_disk_too_small_is_refused_at_once(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(partial.shutil, "disk_usage", lambda _: usage)
    file = writer(tmp_path / "m.qlm")
    message = rf"m\.qlm: cannot be written: .*needs {file.file_size} bytes, 1000 are free"
    with pytest.raises(ConversionError, match=message):
        file.__enter__()
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("blob", [b"x", b"x" * 100_000], ids=["data", "tokenizer"])
def test_writer_disk_full_while_writing_leaves_no_file(tmp_path, monkeypatch, blob):
    def full(target):
        path = target.with_name("temporary")
        path.symlink_to("/dev/full")
        return path, path.open("r+b", buffering=64)

    monkeypatch.setattr(partial, "_create", full)

    def write():
        with writer(tmp_path / "m.qlm", tokenizer_blob=blob) as file:
            file.write(SPECS[0].name, contents(SPECS[0]))

    with pytest.raises(ConversionError, match=r"m\.qlm: .*No space left.* needs \d+ bytes"):
        write()
    assert names(tmp_path) == []


@posix
def test_writer_file_size_limit_leaves_no_file(tmp_path):
    with start(tmp_path / "m.qlm", LIMITED) as process:
        error = process.stderr.read()
    assert "m.qlm: cannot be written: File too large: it needs" in error
    assert names(tmp_path) == []


@posix
def test_writer_has_the_disk_take_what_is_written_while_it_writes_more(tmp_path, monkeypatch):
    started, go_on, threads = threading.Event(), threading.Event(), []

    def sync(_):
        threads.append(threading.current_thread())
        started.set()
        if threads[0] is threading.current_thread():
            assert go_on.wait(30)

    monkeypatch.setattr(partial, "_SYNC_BYTES", 1)
    monkeypatch.setattr(partial.os, "fsync", sync)
    with writer(tmp_path / "m.qlm") as file:
        for spec in SPECS:
            file.write(spec.name, contents(spec))
        assert started.wait(30)
        # The one that waits is enough.
        assert len(threads) == 1
        go_on.set()
    assert threading.current_thread() not in threads[:1]
    assert threads[-2:] == [threading.current_thread()] * 2
    assert not threads[0].is_alive()


@posix
@pytest.mark.parametrize("n_writes", [1, 9])
def test_partial_file_error_of_a_sync_beside_is_the_writer_s(tmp_path, monkeypatch, n_writes):
    def fail(_):
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(partial, "_SYNC_BYTES", 1)
    monkeypatch.setattr(partial.os, "fsync", fail)
    file = partial.PartialFile(tmp_path / "m.qlm", n_writes)

    def write():
        for _ in range(n_writes):
            file.write(b"x")
        file.commit()

    with pytest.raises(ConversionError, match=rf"m\.qlm: .*{os.strerror(errno.EIO)}"):
        write()
    file.discard()
    assert names(tmp_path) == []


@posix
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_writer_failed_sync_leaves_no_file(tmp_path, monkeypatch, number):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(partial.os, "fsync", fail)
    with pytest.raises(ConversionError, match=os.strerror(number)):
        write_sample(tmp_path / "m.qlm")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_writer_refused_directory_is_named(tmp_path, monkeypatch, number):
    def refuse(target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(partial, "_create", refuse)
    with pytest.raises(ConversionError, match="choose a directory you may write to") as caught:
        write_sample(tmp_path / "m.qlm")
    assert os.strerror(number) in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@posix
@pytest.mark.skipif(sys.platform != "win32" and os.geteuid() == 0, reason="root may write")
def test_writer_read_only_directory_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(ConversionError, match="choose a directory you may write to"):
            write_sample(tmp_path / "m.qlm")
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    ("target", "fragment"),
    [
        ("nowhere/m.qlm", "make the directory first"),
        ("file/m.qlm", "make the directory first"),
        ("", "not a regular file"),
        ("x" * 250 + ".qlm", "name too long"),
    ],
)
def test_writer_impossible_target_is_refused(tmp_path, target, fragment):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConversionError, match=f"(?i){fragment}"):
        write_sample(tmp_path / target)
    assert names(tmp_path) == ["file"]


@posix
def test_writer_device_is_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConversionError, match="not a regular file"):
        write_sample(pipe)
    assert pipe.is_fifo()
