"""Tables as Markdown."""

from __future__ import annotations

from qllama.bench.markdown import table


def test_table_words_go_left_and_numbers_right():
    rows = [["a", "12.5", "x"], ["longer", "7", "yz"]]
    assert table(["name", "t/s", "note"], rows, {"name", "note"}) == (
        "| name   |  t/s | note |\n"
        "| ------ | ---: | ---- |\n"
        "| a      | 12.5 | x    |\n"
        "| longer |    7 | yz   |\n"
    )


def test_table_without_rows_is_its_header():
    assert table(["name", "t/s"], [], {"name"}) == "| name | t/s |\n| ---- | --: |\n"
