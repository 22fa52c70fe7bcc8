"""The programs of examples/ run, and print what they promise."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PASSAGES = """The tortoise eats leaves and grass,
and drinks little.

Shares of banks fell sharply on Tuesday after the central bank raised interest rates.

Heavy rain and storms are expected over the northern hills tonight."""


@pytest.fixture
def run(smollm2_q8):
    def run(name, *arguments):
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / name, smollm2_q8, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_example_async_chat_mixes_pieces_and_ends_with_whole_answers(run):
    lines = run("async_chat.py")
    pieces = [line.split(" | ") for line in lines[:-2] if " | " in line]
    assert {question.strip() for question, _ in pieces} == {"Name a river.", "Name a mountain."}
    assert pieces[0][0] != pieces[1][0]


def test_example_semantic_search_finds_the_passage(run, tmp_path):
    (tmp_path / "passages.txt").write_text(PASSAGES)
    lines = run("semantic_search.py", tmp_path / "passages.txt", "Will it be wet tomorrow?")
    assert len(lines) == 3
    assert "Heavy rain" in lines[0]


def test_example_batch_scoring_ranks_the_right_choice_first(run):
    lines = run("batch_scoring.py")
    assert lines[0].startswith("The capital of France is: Paris (")
    assert len(lines) == 3


def test_example_structured_extraction_prints_a_record_a_note(run):
    first, second = map(ast.literal_eval, run("structured_extraction.py"))
    assert [*first] == [*second] == ["who", "date", "amount"]
    assert [*first.values()] == ["Anna Berg", "2024-03-05", 120]
    assert [*second.values()] == ["Tom Hill", "2023-11-30", 34]


def test_example_activation_tracing_finds_the_head_that_looks_at_the_country(run):
    lines = run("activation_tracing.py")
    assert lines[0].startswith("without head 4 of layer 23: -")
    assert lines[3].startswith("it looks at ' France' (0.")
    assert "' Paris' 0." in lines[-1]


def test_examples_are_all_tested():
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in text for path in (ROOT / "examples").glob("*.py"))
