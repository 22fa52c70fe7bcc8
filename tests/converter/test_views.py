"""Lazy views: every range of rows is that of the whole array, and no more is read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from converter.sources import views
from converter.sources.base import SourceTensor
from converter.sources.views import (
    Columns,
    Grouped,
    Reordered,
    RowSlice,
    Stacked,
    Transposed,
    interleaved_to_half_split,
)

VALUES = np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)


class Recorded(SourceTensor):
    """An array in memory that notes which rows are read."""

    def __init__(self, values: np.ndarray) -> None:
        self.where = "m: tensor 'a'"
        self.shape = values.shape
        self.source_type = "F32"
        self.n_bytes = values.nbytes
        self.values = values
        self.rows: list[tuple[int, int]] = []

    def read(self, start, stop):
        assert 0 <= start < stop <= self.shape[0]
        self.rows.append((start, stop))
        return self.values[start:stop]


def check(view: SourceTensor, expected: np.ndarray) -> None:
    """Compare every range of rows, shape and size."""
    assert view.shape == expected.shape
    assert view.n_bytes == expected.nbytes
    assert view.source_type == "F32"
    assert view.where.startswith("m: tensor 'a'")
    for start in range(len(expected)):
        for stop in range(start + 1, len(expected) + 1):
            np.testing.assert_array_equal(view.read(start, stop), expected[start:stop])


@pytest.mark.parametrize("values", [VALUES, VALUES[:, 0]], ids=["matrix", "vector"])
def test_row_slice_is_the_rows(values):
    check(RowSlice(Recorded(values), 5, 17), values[5:17])


def test_row_slice_says_which_rows_it_is():
    assert RowSlice(Recorded(VALUES), 5, 17).where == "m: tensor 'a', rows 5 to 16"


@pytest.mark.parametrize("cuts", [[24], [8, 16], [1, 2, 23], [0, 24]])
@pytest.mark.parametrize("values", [VALUES, VALUES[:, 0]], ids=["matrix", "vector"])
def test_stacked_is_the_parts_below_each_other(values, cuts):
    parts = [Recorded(part) for part in np.split(values, cuts)]
    check(Stacked(parts), values)


def test_stacked_reads_only_the_parts_that_hold_the_rows():
    parts = [Recorded(part) for part in np.split(VALUES, [8, 16])]
    Stacked(parts).read(9, 18)
    assert [part.rows for part in parts] == [[], [(1, 8)], [(0, 2)]]


@pytest.mark.parametrize("cuts", [[3], [1, 5], []])
def test_columns_is_the_parts_side_by_side(cuts):
    check(Columns([Recorded(part) for part in np.split(VALUES, cuts, axis=1)]), VALUES)


@pytest.mark.parametrize("values", [VALUES, VALUES[:, 0]], ids=["matrix", "vector"])
def test_reordered_is_the_rows_in_the_other_order(values):
    order = np.random.default_rng(1).permutation(24)
    check(Reordered(Recorded(values), order), values[order])


def test_reordered_reads_from_the_first_to_the_last_of_its_rows():
    tensor = Recorded(VALUES)
    Reordered(tensor, interleaved_to_half_split(24, 8)).read(8, 16)
    assert tensor.rows == [(8, 16)]


@pytest.mark.parametrize("head_dim", [2, 4, 6, 24])
def test_interleaved_to_half_split_makes_rope_of_pairs_rope_of_halves(head_dim):
    # Rotating neighbours by an angle each, then reordering, is reordering, then rotating halves.
    pairs = VALUES[:, 0].reshape(-1, head_dim // 2, 2).astype(np.float64)
    angles = np.arange(head_dim // 2) + 0.5
    rotated_pairs = np.empty_like(pairs)
    rotated_pairs[..., 0] = pairs[..., 0] * np.cos(angles) - pairs[..., 1] * np.sin(angles)
    rotated_pairs[..., 1] = pairs[..., 1] * np.cos(angles) + pairs[..., 0] * np.sin(angles)
    order = interleaved_to_half_split(24, head_dim)
    halves = VALUES[order, 0].reshape(-1, 2, head_dim // 2).astype(np.float64)
    rotated_halves = np.empty_like(halves)
    rotated_halves[:, 0] = halves[:, 0] * np.cos(angles) - halves[:, 1] * np.sin(angles)
    rotated_halves[:, 1] = halves[:, 1] * np.cos(angles) + halves[:, 0] * np.sin(angles)
    np.testing.assert_array_equal(rotated_pairs.reshape(-1)[order], rotated_halves.reshape(-1))


@pytest.mark.parametrize(("first", "n"), [(0, 3), (3, 1), (4, 2), (5, 1)])
@pytest.mark.parametrize("values", [VALUES, VALUES[:, 0]], ids=["matrix", "vector"])
def test_grouped_is_the_same_rows_of_every_group(values, first, n):
    groups = values.reshape(4, 6, -1)[:, first : first + n]
    check(Grouped(Recorded(values), 6, first, n), groups.reshape(-1, *values.shape[1:]))


def test_grouped_reads_no_rows_of_others():
    tensor = Recorded(VALUES)
    Grouped(tensor, 6, 2, 3).read(2, 7)
    assert tensor.rows == [(4, 5), (8, 11), (14, 15)]


@pytest.mark.parametrize("values_kept", [1, 60, 1000])
@pytest.mark.parametrize("values_at_once", [1, 13, 1000])
def test_transposed_is_the_transpose(values_at_once, values_kept, monkeypatch):
    monkeypatch.setattr(views, "_TRANSPOSED_VALUES", values_at_once)
    monkeypatch.setattr(views, "_GROUP_VALUES", values_kept)
    check(Transposed(Recorded(VALUES)), VALUES.T)


def test_transposed_goes_through_the_stored_matrix_once_a_group(monkeypatch):
    monkeypatch.setattr(views, "_GROUP_VALUES", 24 * 3)
    tensor = Recorded(VALUES)
    view = Transposed(tensor)
    # Not in order, and across the border of the two groups.
    for start, stop in ((1, 2), (5, 6), (2, 4), (0, 1), (4, 5)):
        np.testing.assert_array_equal(view.read(start, stop), VALUES.T[start:stop])
    assert tensor.rows == [(0, 24)] * 2
    # All rows were asked for: none is kept.
    view.read(0, 1)
    assert tensor.rows == [(0, 24)] * 3


def test_transposed_keeps_two_groups_at_most(monkeypatch):
    monkeypatch.setattr(views, "_GROUP_VALUES", 24 * 2)
    tensor = Recorded(VALUES)
    view = Transposed(tensor)
    for row in (0, 2, 4, 1):
        view.read(row, row + 1)
    assert tensor.rows == [(0, 24)] * 4


def test_transposed_is_the_transpose_for_threads(monkeypatch):
    monkeypatch.setattr(views, "_GROUP_VALUES", 24 * 2)
    view = Transposed(Recorded(VALUES))
    with ThreadPoolExecutor(4) as pool:
        for row, values in enumerate(pool.map(lambda i: view.read(i % 6, i % 6 + 1), range(60))):
            np.testing.assert_array_equal(values[0], VALUES[:, row % 6])


def test_transposed_reads_a_bounded_part_at_a_time(monkeypatch):
    monkeypatch.setattr(views, "_TRANSPOSED_VALUES", 30)
    tensor = Recorded(VALUES)
    Transposed(tensor).read(1, 3)
    assert {stop - start for start, stop in tensor.rows} <= {5, 4}
