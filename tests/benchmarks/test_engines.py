"""Commands of engines and what their answers are read as."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click
import pytest

from harness.engines import LlamaBench, Qllama, parse_batched_bench, parse_llama_bench
from qllama.bench.plan import Test as BenchTest

# Of llama-bench -p 8 -n 4 -d 16 -o json, most keys left out.
LLAMA_BENCH = """[
  {
    "build_commit": "unknown",
    "model_filename": "/models/tiny.gguf",
    "model_size": 96576768,
    "n_prompt": 8,
    "n_gen": 0,
    "n_depth": 16,
    "avg_ts": 205.919999,
    "samples_ts": [ 205.92, 201.5 ]
  },
  {
    "build_commit": "unknown",
    "model_filename": "/models/tiny.gguf",
    "model_size": 96576768,
    "n_prompt": 0,
    "n_gen": 4,
    "n_depth": 16,
    "avg_ts": 71.0,
    "samples_ts": [ 70.0, 72.0 ]
  }
]
"""
# Of llama-batched-bench -npp 0 -ntg 8 -npl 2,2,4 --output-format jsonl.
BATCHED_BENCH = """
{"n_threads": 2, "pp": 0, "tg": 8, "pl": 2, "t_pp": 0.0, "speed_pp": -nan, "speed_tg": 246.381}
{"n_threads": 2, "pp": 0, "tg": 8, "pl": 2, "t_pp": 0.0, "speed_pp": -nan, "speed_tg": 253.702}
{"n_threads": 2, "pp": 0, "tg": 8, "pl": 4, "t_pp": 0.0, "speed_pp": nan, "speed_tg": 438.452}
"""


@pytest.fixture
def program(tmp_path):
    """Make a program that keeps its arguments in `arguments` beside it and prints `answer`."""

    def make(name: str, answer: str, code: int = 0) -> Path:
        script = tmp_path / f"{name}.py"
        script.write_text(
            "import sys, pathlib\n"
            f"pathlib.Path({str(tmp_path / 'arguments')!r}).write_text(repr(sys.argv[1:]))\n"
            f"print({answer!r})\n"
            "print('first\\nlast words', file=sys.stderr)\n"
            f"sys.exit({code})\n"
        )
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(script)])} "$@"\n')
        path.chmod(0o755)
        return path

    return make


def arguments(tmp_path):
    return eval((tmp_path / "arguments").read_text())


def test_parse_llama_bench_rows_become_tests_with_their_samples():
    prompt, answer = parse_llama_bench(LLAMA_BENCH)
    assert (prompt.test, prompt.samples) == (BenchTest(8, 0, depth=16), [205.92, 201.5])
    assert (answer.test, answer.samples) == (BenchTest(0, 4, depth=16), [70.0, 72.0])
    assert answer.details["size_bytes"] == 96576768


def test_parse_llama_bench_older_programs_without_depth_are_at_none():
    rows = json.loads(LLAMA_BENCH)
    del rows[0]["n_depth"]
    assert parse_llama_bench(json.dumps(rows))[0].test == BenchTest(8, 0)


def test_parse_batched_bench_repeated_test_is_one_run_and_nan_is_read():
    two, four = parse_batched_bench(BATCHED_BENCH)
    assert (two.test, two.samples) == (BenchTest(0, 8, n_parallel=2), [246.381, 253.702])
    assert (four.test, four.samples) == (BenchTest(0, 8, n_parallel=4), [438.452])


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_llama_bench_measure_asks_for_all_tests_at_once(program, tmp_path):
    path = program("llama-bench", LLAMA_BENCH)
    engine = LlamaBench.parse(f"rival={shlex.join([str(path), '-rtr', '1'])}")
    tests = [BenchTest(8, 0, 16), BenchTest(0, 4, 16)]
    runs = engine.measure(Path("m.gguf"), tests, 2, 5, ["-fa", "0"])
    assert [run.test for run in runs] == tests
    assert arguments(tmp_path) == shlex.split(
        "-rtr 1 -m m.gguf -r 5 -o json -t 2 -d 16 -p 8 -n 4 -fa 0"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_llama_bench_measure_sequences_together_asks_the_batched_program(program, tmp_path):
    program("llama-batched-bench", BATCHED_BENCH)
    engine = LlamaBench("rival", [str(tmp_path / "llama-bench")])
    engine.measure(Path("m.gguf"), [BenchTest(0, 8, n_parallel=2)], 3, 2)
    assert arguments(tmp_path) == shlex.split(
        "-m m.gguf --output-format jsonl -t 3 -tb 3 -c 16 -npp 0 -ntg 8 -npl 2,2"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_llama_bench_measure_failure_tells_the_last_words(program):
    engine = LlamaBench("rival", [str(program("llama-bench", "", code=3))])
    with pytest.raises(click.ClickException, match=r"llama-bench -m m\.gguf .*: last words$"):
        engine.measure(Path("m.gguf"), [BenchTest(8, 0)], 2, 1)


def test_llama_bench_measure_missing_program_is_named():
    engine = LlamaBench("rival", ["no-such-llama-bench"])
    with pytest.raises(click.ClickException, match="no-such-llama-bench: No such file"):
        engine.measure(Path("m.gguf"), [BenchTest(8, 0)], 2, 1)


@pytest.mark.parametrize("text", ["llama-bench", "=llama-bench", "name="])
def test_llama_bench_parse_without_name_or_command_is_refused(text):
    with pytest.raises(click.BadParameter, match="expected NAME=COMMAND"):
        LlamaBench.parse(text)


def test_llama_bench_told_leaves_directories_out():
    engine = LlamaBench.parse("llama.cpp=/home/me/bin/llama-bench -fa 1")
    assert engine.told == "llama.cpp=llama-bench -fa 1"


def test_qllama_measure_reads_what_the_command_prints(monkeypatch):
    # The whole path, but with as little to measure as there can be.
    from harness import engines

    asked = []

    def output_of(command):
        asked.append(command)
        row = {"n_prompt": 0, "n_gen": 4, "depth": 0, "n_parallel": 2, "samples_ts": [8.0]}
        details = dict.fromkeys(engines._QLLAMA_DETAILS, 1.5)
        weights = {"m": {"2": {"median": 2.0}}}
        limits = {"read_gb_s": {"2": {"median": 20.0}}, "dot4_gop_s": {"2": {"median": 900.0}}}
        return json.dumps({"rows": [row | details], "limits": limits | {"weights_gb_s": weights}})

    monkeypatch.setattr(engines, "output_of", output_of)
    engine = Qllama(["--no-mmap"])
    (run,) = engine.measure(Path("m.qlm"), [BenchTest(0, 4, n_parallel=2)], 2, 3)
    assert (run.test, run.samples) == (BenchTest(0, 4, n_parallel=2), [8.0])
    assert run.details["read_share"] == 1.5
    assert run.details["weights_share"] == 0.75
    assert engine.limits == [
        {
            "model": "m.qlm",
            "threads": 2,
            "read_gb_s": 20.0,
            "dot4_gop_s": 900.0,
            "weights_gb_s": 2.0,
        }
    ]
    assert asked[0][2:] == shlex.split(
        "bench m.qlm -t 2 -d 0 -p 0 -n 4 -np 2 -r 3 -o json --no-mmap"
    )
