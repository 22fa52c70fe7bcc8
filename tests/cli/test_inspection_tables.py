"""How tables look: in a pipe, on a terminal, in Markdown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qllama.cli.inspection.tables import (
    Section,
    as_markdown,
    as_table,
    human_count,
    human_size,
    pairs,
)

TABLE = Section(
    "Parts",
    ("part", "count"),
    (("a[b]", "1"), ("long name", "12,345")),
    numbers=("count",),
    note="Counted.",
)


def plain(width=200):
    return Console(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (5 * 2**40, "5120.0 GiB"),
    ],
)
def test_human_size_chooses_the_unit(n_bytes, text):
    assert human_size(n_bytes) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(999, "999"), (1000, "1 k"), (3_212_749_824, "3.213 G"), (51_520_000_000_000, "51.52 T")],
)
def test_human_count_chooses_the_unit(n, text):
    assert human_count(n) == text


def test_table_aligns_numbers_to_the_right_and_ends_lines_at_their_text():
    assert as_table([TABLE, pairs("Facts", {"a": None, "bb": [1]})], plain()).splitlines() == [
        "Parts",
        "  part        count",
        "  a[b]            1",
        "  long name  12,345",
        "  Counted.",
        "",
        "Facts",
        "  a   none",
        "  bb  [1]",
    ]


def test_table_leaves_out_sections_without_rows():
    assert as_table([pairs("Recipe", {}), TABLE], plain()).startswith("Parts\n")
    assert as_markdown([pairs("Recipe", {}), TABLE]).startswith("## Parts\n")


def test_table_folds_long_values_where_a_terminal_ends():
    text = as_table([pairs("Facts", {"key": "x" * 100})], plain(width=40))
    assert max(map(len, text.splitlines())) <= 40
    assert text.count("x") == 100


def test_table_folds_no_column_but_the_last():
    text = as_table(
        [TABLE, Section("Kinds", ("a", "b"), (("x" * 20, "y " * 20),))], plain(width=40)
    )
    assert text.count("x" * 20) == 1
    assert sum(line.count("y") for line in text.splitlines()) == 20
    assert max(map(len, text.splitlines())) <= 40


def test_table_shows_control_characters_as_escapes():
    hostile = pairs("Facts", {"name": "a\x1b]0;title\x07\nb"})
    assert "  name  a\\x1b]0;title\\x07\\nb" in as_table([hostile], plain())
    assert "| name | a\\x1b]0;title\\x07\\nb |" in as_markdown([hostile])


def test_markdown_says_how_columns_are_aligned():
    assert as_markdown([TABLE]).splitlines() == [
        "## Parts",
        "",
        "| part | count |",
        "| --- | ---: |",
        "| a[b] | 1 |",
        "| long name | 12,345 |",
        "",
        "Counted.",
    ]


def test_markdown_escapes_what_would_end_a_cell():
    assert "| a \\| b | 1 |" in as_markdown([pairs("Facts", {"a | b": 1})])


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), (True, "yes"), (False, "no"), (9.999999747378752e-06, "1e-05"), (3, "3")],
)
def test_pairs_word_values(value, text):
    assert pairs("Facts", {"key": value}).rows == (("key", text),)
