"""`qllama bench`: what it prints where, what it refuses, and how it is interrupted."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qllama.bench.session import Session
from qllama.cli import bench as bench_command
from qllama.cli.bench_progress import BenchProgress
from qllama.errors import OutOfMemoryError
from qllama.format.storage import read_data

QUICK = ("-p", "4", "-n", "2", "-r", "2", "-t", "1")


@pytest.fixture(autouse=True)
def little_memory(monkeypatch):
    monkeypatch.setattr("qllama.bench.runner.stream_memory", lambda: np.ones(2**20, np.uint8))


def test_bench_prints_the_table_alone_to_stdout(run, tiny_qlm):
    result = run("bench", str(tiny_qlm), *QUICK, "-d", "0,8", "-np", "1,2", "-pg", "4,4")
    assert result.exit_code == 0
    rows = [line for line in result.stdout.splitlines() if line.startswith("| tiny ")]
    tests = ["pp4", "tg2", "tg2 x2", "pp4+tg4"]
    assert [row.split("|")[6].strip() for row in rows] == tests + [f"{t} @ d8" for t in tests]
    assert "100% with 1 thread(s): " in result.stdout
    measuring = [line for line in result.stderr.splitlines() if "measuring" in line]
    assert len(measuring) == 8
    assert measuring[1] == "qllama: measuring 2 of 8: tiny, 1 thread(s), tg2"


def test_bench_json_is_one_document(run, tiny_qlm):
    document = json.loads(run("bench", str(tiny_qlm), *QUICK, "-b", "3", "-o", "json").stdout)
    assert document["schema"] == 1
    assert document["is_complete"] is True
    rows = document["rows"]
    assert [(row["test"], len(row["samples_ts"]), row["n_batch"]) for row in rows] == [
        ("pp4", 2, 3),
        ("tg2", 2, 3),
    ]
    assert rows[0]["path"] == str(tiny_qlm)
    assert set(document["limits"]["read_gb_s"]) == {"1"}


def test_bench_csv_has_a_line_a_test(run, tiny_qlm):
    text = run("bench", str(tiny_qlm), *QUICK, "-ctk", "q8_0", "-o", "csv").stdout
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(line["test"], line["kv_type"]) for line in lines] == [("pp4", "q8"), ("tg2", "q8")]


@pytest.mark.parametrize(("flags", "use_mmap"), [((), True), (("--no-mmap",), False)])
def test_bench_opens_files_as_it_is_told(run, tiny_qlm, monkeypatch, flags, use_mmap):
    opened = []
    monkeypatch.setattr(
        "qllama.format.reader.read_data",
        lambda *args: opened.append(args) or read_data(*args),
    )
    document = json.loads(run("bench", str(tiny_qlm), *QUICK, *flags, "-o", "json").stdout)
    assert {row["use_mmap"] for row in document["rows"]} == {use_mmap}
    assert len(opened) == (not use_mmap)


def test_bench_lists_may_be_given_several_times_and_count_each_number_once(run, tiny_qlm):
    arguments = ("-p", "0", "-n", "1,2", "-n", "2,3", "-r", "1", "-t", "1", "-o", "json")
    document = json.loads(run("bench", str(tiny_qlm), *arguments).stdout)
    assert [row["test"] for row in document["rows"]] == ["tg1", "tg2", "tg3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "1,x"], "whole numbers of at least 0, separated by commas, found '1,x'"),
        (["-n", ""], "whole numbers of at least 0, separated by commas, found ''"),
        (["-d", "-1"], "whole numbers of at least 0, separated by commas, found '-1'"),
        (["-t", "2,0"], "whole numbers of at least 1, separated by commas, found '2,0'"),
        (["-np", "1.5"], "whole numbers of at least 1, separated by commas, found '1.5'"),
        (["-pg", "5"], "2 whole numbers of at least 1, separated by commas, found '5'"),
        (["-pg", "5,0"], "2 whole numbers of at least 1, separated by commas, found '5,0'"),
        (["-p", "0", "-n", "0"], "Nothing to measure"),
        (["-np", "1,8", "-b", "4"], "-np 8 sequences do not fit a batch of -b 4 tokens."),
        (["-r", "0"], "'-r'"),
        (["-o", "xml"], "'md', 'json', 'csv'"),
    ],
)
def test_bench_wrong_arguments_are_one_line(run, tiny_qlm, arguments, message):
    result = run("bench", str(tiny_qlm), *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_bench_batch_size_does_not_matter_to_sequences_that_no_test_has(run, tiny_qlm):
    arguments = ("-p", "4", "-n", "0", "-np", "8", "-b", "4", "-r", "1", "-t", "1", "-o", "json")
    result = run("bench", str(tiny_qlm), *arguments)
    assert result.exit_code == 0
    assert [row["test"] for row in json.loads(result.stdout)["rows"]] == ["pp4"]


def test_bench_test_beyond_the_context_is_one_line(run, tiny_qlm):
    result = run("bench", str(tiny_qlm), "-p", "120", "-n", "2", "-d", "9")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "qllama: error: test pp120 @ d9: expected at most the 128 tokens that tiny can hold, "
        "found 129; choose a shorter one\n"
    )


@pytest.mark.parametrize("output", ["md", "json"])
def test_bench_interrupted_prints_what_it_has_and_exits_130(run, tiny_qlm, monkeypatch, output):
    def interrupted(session, test):
        if test.n_gen:
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "run", interrupted)
    result = run("bench", str(tiny_qlm), *QUICK, "-o", output)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "qllama: interrupted: measured 1 of 2 tests"
    if output == "json":
        document = json.loads(result.stdout)
        assert document["is_complete"] is False
        assert [row["test"] for row in document["rows"]] == ["pp4"]
    else:
        assert " pp4 |" in result.stdout
        assert " tg2 |" not in result.stdout


@pytest.mark.parametrize("output", ["md", "json"])
def test_bench_that_fails_prints_what_it_has_and_then_the_error(run, tiny_qlm, monkeypatch, output):
    def failing(session, test):
        if test.n_gen:
            raise OutOfMemoryError("no memory for tg2")

    monkeypatch.setattr(Session, "run", failing)
    result = run("bench", str(tiny_qlm), *QUICK, "-o", output)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-2:] == [
        "qllama: measured 1 of 2 tests before an error",
        "qllama: error: no memory for tg2",
    ]
    assert "pp4" in result.stdout
    assert "tg2" not in result.stdout


def test_bench_that_fails_before_any_result_prints_the_error_alone(run, tiny_qlm, monkeypatch):
    def failing(*arguments):
        raise OutOfMemoryError("no memory")

    monkeypatch.setattr("qllama.bench.runner.Session", failing)
    result = run("bench", str(tiny_qlm), *QUICK)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "measured" not in result.stderr


def test_bench_file_is_named_after_itself_however_its_path_is_written(monkeypatch, tmp_path):
    for name in ("x.qlm", "y.qlm"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in ("./x.qlm", "x.qlm", f"{tmp_path}//x.qlm", "~/x.qlm"):
        assert [model.name for model in bench_command._named_models([typed])] == ["x"], typed


def test_bench_models_are_named_after_what_the_user_typed(monkeypatch):
    monkeypatch.setattr(
        bench_command,
        "model_path",
        lambda model: Path(model if model.endswith("qlm") else "/cache/m"),
    )
    typed = ["a/m.qlm", "b/m.qlm", "a/m.qlm", "c/Llama-3.2-1B.gguf", "org/Name-1.5"]
    assert [model.name for model in bench_command._named_models(typed)] == [
        *("m", "b/m.qlm", "Llama-3.2-1B q4", "Name-1.5 q4"),
    ]
    assert [model.path for model in bench_command._named_models([])] == ["/cache/m"]


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


def test_bench_progress_on_a_terminal_is_one_line_with_the_latest_result(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", Terminal())
    row = SimpleNamespace(
        model=SimpleNamespace(name="m[1]"),
        n_threads=2,
        test=SimpleNamespace(name="pp8"),
        seconds=[],
        mean=123.456,
    )
    with BenchProgress(n_rows=1, repetitions=2) as progress:
        progress.report(row, 0)
        progress.report(row, 0)
        row.seconds.append(1.0)
        progress.report(row, 1)
        progress.report(row, 2)
        shown = sys.stderr.getvalue()
    assert "m[1], 2 thread(s), pp8 " in shown
    assert "m[1], 2 thread(s), pp8: 123.46 t/s" in shown
    assert [shown.count(f"{n}/3") > 0 for n in range(4)] == [True] * 4
    assert "\x1b[3" not in shown  # no colour
