"""Pieces of files that are dropped from the system's cache, and those that must stay."""

from __future__ import annotations

import os
import sys

import pytest
from tiny_hf import config_of, random_weights, shapes_of, write_repository

from converter import page_cache
from converter.page_cache import dropped_when_read, note_read
from converter.pipeline import convert

PIECE = 100

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is told")


@pytest.fixture
def dropped(monkeypatch):
    """Pieces that are dropped, as (descriptor, start, bytes)."""
    calls = []
    monkeypatch.setattr(page_cache, "_PIECE", PIECE)
    monkeypatch.setattr(page_cache, "_FEWEST_PIECES", 3)
    monkeypatch.setattr(os, "posix_fadvise", lambda *call: calls.append(call))
    return calls


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(350))
    return path


def drop(piece):
    return 7, piece * PIECE, PIECE, os.POSIX_FADV_DONTNEED


def test_piece_is_dropped_when_all_of_it_was_read_as_often_as_it_will_be(dropped, file):
    with dropped_when_read({file: 2}):
        note_read(file, 7, 0, 250)
        note_read(file, 7, 50, 199)
        note_read(file, 7, 0, 50)
        assert dropped == [drop(0)]
        note_read(file, 7, 199, 200)
        assert dropped == [drop(0), drop(1)]
        note_read(file, 7, 200, 350)
        assert dropped == [drop(0), drop(1)]
        note_read(file, 7, 250, 350)
        assert dropped == [drop(0), drop(1), drop(2), drop(3)]


def test_piece_of_a_small_file_is_kept(dropped, tmp_path):
    path = tmp_path / "small"
    path.write_bytes(bytes(299))
    with dropped_when_read({path: 1}):
        note_read(path, 7, 0, 299)
    assert dropped == []


def test_piece_that_is_read_again_is_dropped_no_second_time(dropped, file):
    with dropped_when_read({file: 1}):
        note_read(file, 7, 0, 120)
        note_read(file, 7, 0, 120)
    assert dropped == [drop(0)]


def test_files_that_are_not_converted_are_left_alone(dropped, file, tmp_path):
    with dropped_when_read({file: 1}):
        note_read(tmp_path / "other", 7, 0, 350)
    note_read(file, 7, 0, 350)
    assert dropped == []


def test_file_that_grew_meanwhile_has_no_further_pieces(dropped, file):
    with dropped_when_read({file: 1}):
        note_read(file, 7, 300, 900)
    assert dropped == [drop(3)]


@pytest.mark.parametrize("known", [False, True])
def test_convert_drops_all_weights_and_each_piece_once(dropped, tmp_path, known):
    repository = write_repository(tmp_path / "m", None, random_weights(shapes_of(config_of())))
    weights = repository / "model.safetensors"
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    convert(repository, tmp_path / "out.qlm", sha256="0" * 64 if known else None)
    starts = sorted(start for _, start, _, _ in dropped)
    # Nothing but the hash needs the header.
    first = -(-header // PIECE) * PIECE
    assert starts == list(range(first, weights.stat().st_size, PIECE))
