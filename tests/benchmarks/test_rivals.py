"""The programs that put other engines behind llama-bench's options."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click
import pytest

from harness.engines import LlamaBench
from qllama.bench.plan import Test as BenchTest

IK = Path(__file__).parents[2] / "benchmarks" / "rival_ik_llama.py"
# Prints its arguments where an answer has words, as a row of ik_llama.cpp's -gp 2048,64.
PROGRAM = """
import json, sys
row = {"n_prompt": 2048, "n_gen": 64, "samples_ts": [15.5], "model_size": 7}
print(json.dumps([row | {"build_commit": " ".join(sys.argv[1:])}]))
"""


@pytest.fixture
def ik(tmp_path):
    """The rival as side_by_side.py makes it of an option."""
    script = tmp_path / "llama-bench.py"
    script.write_text(PROGRAM)
    program = tmp_path / "llama-bench"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(script)])} "$@"\n')
    program.chmod(0o755)
    return LlamaBench.parse(f"ik={shlex.join([sys.executable, str(IK), str(program)])} -rtr 1")


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_ik_llama_depth_is_a_prompt_before_the_answer(ik):
    (run,) = ik.measure(Path("m.gguf"), [BenchTest(0, 64, depth=2048)], 2, 3, ["-fa", "1"])
    assert (run.test, run.samples) == (BenchTest(0, 64, depth=2048), [15.5])
    assert run.details["build"] == "-p 0 -n 0 -gp 2048,64 -rtr 1 -m m.gguf -r 3 -o json -t 2 -fa 1"


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_ik_llama_without_depth_is_asked_as_any_other(ik):
    (run,) = ik.measure(Path("m.gguf"), [BenchTest(512, 0), BenchTest(0, 64)], 2, 3)
    assert run.test == BenchTest(2048, 64)
    assert run.details["build"] == "-p 512 -n 64 -rtr 1 -m m.gguf -r 3 -o json -t 2"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such program")
def test_ik_llama_failure_is_handed_on():
    engine = LlamaBench("ik", [sys.executable, str(IK), "false"])
    with pytest.raises(click.ClickException, match=r"exit code 1$"):
        engine.measure(Path("m.gguf"), [BenchTest(0, 64)], 2, 1)
