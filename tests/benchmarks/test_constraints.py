"""The benchmark of masks follows its texts with both libraries that it knows."""

from __future__ import annotations

import importlib.util

from click.testing import CliRunner

import constraints


def test_constraints_benchmark_prints_a_row_for_every_form(smollm2_q8):
    done = CliRunner().invoke(constraints.main, [str(smollm2_q8), "-r", "1"])
    assert done.exit_code == 0, done.output
    _, _, *rows = (line.split("|")[1:-1] for line in done.output.strip().splitlines())
    expected = ["llguidance"]
    if importlib.util.find_spec("outlines_core"):
        expected.append("outlines-core")
    assert [row[2].strip() for row in rows] == 3 * expected
    assert {row[0].strip() for row in rows} == {"49152"}
