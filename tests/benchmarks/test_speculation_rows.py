from __future__ import annotations

import pytest
from click.testing import CliRunner

import speculation
from harness.document import read
from harness.reports import as_markdown
from harness.speculation_rows import SpeculationRow, speculation_table


def test_speculation_row_ratio_is_the_median_of_rounds():
    row = SpeculationRow("copy", True, "greedy", [10, 20, 10], [20, 20, 30], 128, 90, 81)
    assert str(row.ratio) == "2.00 (1.00-3.00)"
    (line,) = speculation_table([row]).splitlines()[2:]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *("copy, repeats", "greedy", "128", "10.0", "20.0", "2.00 (1.00-3.00)", "90", "81")
    ]


@pytest.fixture
def one_question(monkeypatch):
    monkeypatch.setattr(speculation, "_REPEATING", {"copy": "Repeat: one two three, one two"})
    monkeypatch.setattr(speculation, "_FREE", {})


def test_speculation_script_writes_what_it_measured(one_question, smollm2_q4, tmp_path):
    output = tmp_path / "speculation.json"
    done = CliRunner().invoke(
        speculation.main, [str(smollm2_q4), "-n", "6", "-r", "1", "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    document = read(output)
    assert [row["sampling"] for row in document["speculation"]] == ["greedy", "0.8"]
    assert all(0 < row["n_tokens"] <= 6 for row in document["speculation"])
    assert "copy, repeats" in as_markdown(document)


def test_speculation_script_ends_where_answers_differ(one_question, smollm2_q4, monkeypatch):
    def odd(llm, prompt, *, draft_max=15, **how):
        return answers(llm, prompt, **{**how, "seed": draft_max, "temperature": 2.0})

    answers = speculation.Llama.generate
    monkeypatch.setattr(speculation.Llama, "generate", odd)
    done = CliRunner().invoke(speculation.main, [str(smollm2_q4), "-n", "6", "-r", "1"])
    assert (done.exit_code, done.output.strip()) == (1, "Error: copy: guesses changed the answer")
