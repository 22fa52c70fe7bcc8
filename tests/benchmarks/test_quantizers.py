"""The benchmark of the quantizers: a line for each type."""

from __future__ import annotations

from click.testing import CliRunner

import quantizers


def test_quantizers_prints_a_speed_for_each_type(monkeypatch):
    monkeypatch.setattr(quantizers, "_SHAPE", (32, 64))
    result = CliRunner().invoke(quantizers.main, ["q4", "q8_0", "-t", "1", "-r", "1"])
    assert result.exit_code == 0, result.output
    first, second = result.output.splitlines()
    assert first.startswith("q4: ")
    assert first.endswith(" M weights/s on 1 threads")
    assert second.startswith("q8_0: ")


def test_quantizers_refuses_an_unknown_type():
    result = CliRunner().invoke(quantizers.main, ["q3"])
    assert result.exit_code == 2
    assert "q3" in result.output
