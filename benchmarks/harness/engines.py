"""Engines as commands: how each is asked for tokens a second, and how its answer is read.

Each measurement is a fresh process, so that engines take turns on a machine whose
speed drifts, and none holds memory while another is measured.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.program import QLLAMA, named_command, output_of
from qllama.bench.plan import Test

__all__ = ["Engine", "LlamaBench", "Qllama", "Run", "parse_batched_bench", "parse_llama_bench"]

_NOT_A_NUMBER = re.compile(r"-?\bnan\b")
_QLLAMA_DETAILS = ("size_bytes", "n_batch", "gb_s", "read_share", "gop_s", "dot4_share")


@dataclass(slots=True)
class Run:
    """One test as one process measured it.

    Parameters
    ----------
    test : Test
    samples : list of float
        Tokens a second of each repetition, of all sequences together.
    details : dict
        What the engine says beside them, as JSON values.
    """

    test: Test
    samples: list[float]
    details: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """Something that runs tests on a model file.

    Attributes
    ----------
    name : str
        How tables call it.
    """

    name: str

    def measure(
        self,
        model: Path,
        tests: Sequence[Test],
        n_threads: int,
        repetitions: int,
        arguments: Sequence[str] = (),
    ) -> list[Run]:
        """Run `tests`, all of one depth and one number of sequences, in one new process.

        Parameters
        ----------
        model : Path
        tests : sequence of Test
        n_threads : int
        repetitions : int
        arguments : sequence of str
            Added to the command.
        """
        ...


class Qllama:
    """qllama, as `qllama bench` measures it.

    Parameters
    ----------
    arguments : sequence of str
        Added to every command.

    Attributes
    ----------
    limits : list of dict
        What each run measured, by the names in `qllama bench`: the machine's limits, and the
        speed of reading the model's weights where they lie, mapped or copied.
    """

    name = "qllama"

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self._arguments = list(arguments)
        self.limits: list[dict[str, Any]] = []

    def measure(
        self,
        model: Path,
        tests: Sequence[Test],
        n_threads: int,
        repetitions: int,
        arguments: Sequence[str] = (),
    ) -> list[Run]:
        """Run `qllama bench`; see `Engine.measure`."""
        command = [*QLLAMA, "bench", str(model), *_llama_bench_options(tests, n_threads)]
        command += ["-np", str(tests[0].n_parallel), "-r", str(repetitions), "-o", "json"]
        document = json.loads(output_of([*command, *self._arguments, *arguments]))
        n, limits = str(n_threads), document["limits"]
        (weights,) = limits["weights_gb_s"].values()
        found = {
            "read_gb_s": limits["read_gb_s"][n]["median"],
            "dot4_gop_s": limits["dot4_gop_s"][n]["median"],
            "weights_gb_s": weights[n]["median"],
        }
        self.limits.append({"model": model.name, "threads": n_threads, **found})
        return [
            Run(
                Test(row["n_prompt"], row["n_gen"], row["depth"], row["n_parallel"]),
                row["samples_ts"],
                {key: row[key] for key in _QLLAMA_DETAILS}
                | {"weights_share": row["gb_s"] and row["gb_s"] / found["weights_gb_s"]},
            )
            for row in document["rows"]
        ]


class LlamaBench:
    """A rival that is measured by llama-bench, or by a program with its options and answers.

    Sequences decoded together are measured by the `llama-batched-bench` beside it.

    Parameters
    ----------
    name : str
        How tables call it.
    command : sequence of str
        The program and options of every run.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._command = list(command)

    @classmethod
    def parse(cls, text: str) -> LlamaBench:
        """Read `NAME=COMMAND`, the command as a shell would write it."""
        return cls(*named_command(text))

    @property
    def program(self) -> str:
        """The program of every run."""
        return self._command[0]

    @property
    def told(self) -> str:
        """Name and command for a document, without the places of files on this machine."""
        words = [Path(word).name for word in self._command]
        return f"{self.name}={shlex.join(words)}"

    def measure(
        self,
        model: Path,
        tests: Sequence[Test],
        n_threads: int,
        repetitions: int,
        arguments: Sequence[str] = (),
    ) -> list[Run]:
        """Run llama-bench or llama-batched-bench; see `Engine.measure`."""
        if tests[0].n_parallel == 1:
            command = [*self._command, "-m", str(model), "-r", str(repetitions), "-o", "json"]
            options = _llama_bench_options(tests, n_threads)
            return parse_llama_bench(output_of([*command, *options, *arguments]))
        batched = str(Path(self.program).with_name("llama-batched-bench"))
        runs = []
        for test in tests:
            command = [batched, *self._command[1:], "-m", str(model), "--output-format", "jsonl"]
            for threads in ("-t", "-tb"):
                command += [threads, str(n_threads)]
            command += ["-c", str(test.n_parallel * test.n_ctx), "-npp", str(test.depth)]
            command += ["-ntg", str(test.n_gen)]
            command += ["-npl", ",".join([str(test.n_parallel)] * repetitions)]
            runs += parse_batched_bench(output_of([*command, *arguments]))
        return runs


def parse_llama_bench(text: str) -> list[Run]:
    """Read what `llama-bench -o json` prints."""
    return [
        Run(
            Test(row["n_prompt"], row["n_gen"], row.get("n_depth", 0)),
            row["samples_ts"],
            {"size_bytes": row["model_size"], "build": row["build_commit"]},
        )
        for row in json.loads(text)
    ]


def parse_batched_bench(text: str) -> list[Run]:
    """Read what `llama-batched-bench --output-format jsonl` prints; equal tests become one run."""
    runs: dict[Test, Run] = {}
    for line in filter(str.strip, text.splitlines()):
        # Of a prompt of no tokens it prints the speed as -nan, which is no JSON.
        row = json.loads(_NOT_A_NUMBER.sub("NaN", line))
        test = Test(0, row["tg"], depth=row["pp"], n_parallel=row["pl"])
        runs.setdefault(test, Run(test, [])).samples.append(row["speed_tg"])
    return list(runs.values())


def _llama_bench_options(tests: Sequence[Test], n_threads: int) -> list[str]:
    def lengths(values: Iterable[int]) -> str:
        return ",".join(str(value) for value in dict.fromkeys(values) if value) or "0"

    return [
        *("-t", str(n_threads), "-d", str(tests[0].depth)),
        *("-p", lengths(test.n_prompt for test in tests)),
        *("-n", lengths(test.n_gen for test in tests)),
    ]
