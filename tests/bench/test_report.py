"""One document, and the table and the CSV made of it."""

from __future__ import annotations

import csv
import io
import json
import re
from types import SimpleNamespace

import pytest
from test_bench_results import measured

from qllama.bench import plan, report
from qllama.bench.results import Results


def limits(n_threads):
    return SimpleNamespace(
        n_threads=n_threads,
        n_samples=3,
        best_read=("prefetched", [10.0, 40.0, 20.0]),
        dot4_gop_s=[100.0, 300.0, 200.0],
    )


@pytest.fixture
def document(monkeypatch):
    here = {"cpu": "A CPU", "isa": "avx2", "qllama": "1.2.3", "git": None}
    monkeypatch.setattr(report, "environment", lambda: here)
    rows = [
        measured(plan.Test(4, 0), 0.5, 0.25),
        measured(plan.Test(0, 12, depth=2048), 3.0, 2.0),
        measured(plan.Test(0, 12, n_parallel=8), 3.0),
        measured(plan.Test(4, 12), 3.0),
    ]
    results = Results(rows, {2: limits(2)}, {("m", 2): [15.0, 12.0]}, is_complete=True)
    return report.as_document(results)


def test_report_document_has_the_schema_that_scripts_read(document):
    assert json.loads(json.dumps(document)) == document
    assert document["schema"] == 1
    assert document["is_complete"] is True
    assert document["limits"] == {
        "read_gb_s": {"2": {"median": 20.0, "method": "prefetched", "samples": [10.0, 40.0, 20.0]}},
        "dot4_gop_s": {"2": {"median": 200.0, "samples": [100.0, 300.0, 200.0]}},
        "weights_gb_s": {"m": {"2": {"median": 13.5, "samples": [15.0, 12.0]}}},
    }
    assert set(document["rows"][0]) == {
        "model",
        "path",
        "size_bytes",
        "n_params",
        "backend",
        "threads",
        "n_batch",
        "kv_type",
        "use_mmap",
        "test",
        "n_prompt",
        "n_gen",
        "depth",
        "n_parallel",
        "samples_ts",
        "mean_ts",
        "stddev_ts",
        "gb_s",
        "read_share",
        "gop_s",
        "dot4_share",
    }


def test_report_row_holds_samples_and_shares_of_the_limits(document):
    prompt, decode, *_ = document["rows"]
    assert prompt["samples_ts"] == [8, 16]
    assert (prompt["mean_ts"], prompt["gb_s"], prompt["read_share"]) == (12, None, None)
    assert prompt["dot4_share"] == pytest.approx(prompt["gop_s"] / 200)
    assert (decode["test"], decode["n_gen"], decode["depth"]) == ("tg12 @ d2048", 12, 2048)
    assert decode["read_share"] == pytest.approx(decode["gb_s"] / 20)


def test_report_markdown_is_a_table_in_llama_bench_columns(document):
    lines = report.as_markdown(document).splitlines()
    table, remarks = lines[:6], lines[6:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == [
        *("model", "size", "params", "backend", "threads", "test", "t/s", "GB/s", "GOP/s")
    ]
    assert len({len(line) for line in table}) == 1
    assert all(re.fullmatch("-+:?", cell) for cell in cells[1])
    # 4 tokens: 26.01e9 operations, at 12 tokens/s three times a second: 78 of 200.
    assert cells[2] == [
        *("m", "0.00 MiB", "0.00 M", "CPU avx2", "2", "pp4"),
        *("12.00 ± 5.66", "", "78 (39%)"),
    ]
    assert [line[5] for line in cells[2:]] == ["pp4", "tg12 @ d2048", "tg12 x8", "pp4+tg12"]
    # GB/s where nothing but decoding is measured, GOP/s where tokens share the weights.
    assert [bool(line[7]) for line in cells[2:]] == [False, True, True, False]
    assert [bool(line[8]) for line in cells[2:]] == [True, False, True, True]
    assert remarks == [
        "",
        "100% with 2 thread(s): 20.0 GB/s read (prefetched), 200 GOP/s of dot4",
        "m, its weights read where they lie: 13.5 GB/s",
        "qllama 1.2.3 on A CPU",
    ]


def test_report_markdown_says_what_holds_keys_and_values_if_it_is_not_f16(document):
    for row in document["rows"]:
        row["kv_type"] = "q8"
    assert report.as_markdown(document).splitlines()[-2] == "keys and values held in q8"


def test_report_markdown_says_if_weights_were_not_mapped(document):
    for row in document["rows"]:
        row["use_mmap"] = False
    assert report.as_markdown(document).splitlines()[-2] == "weights read into memory, not mapped"


@pytest.mark.parametrize(
    ("n_bytes", "n_params", "size", "count"),
    [
        (91185408, 134515008, "86.96 MiB", "134.52 M"),
        (1321082688, 1235814432, "1.23 GiB", "1.24 B"),
    ],
)
def test_report_sizes_are_written_as_llama_bench_writes_them(
    document, n_bytes, n_params, size, count
):
    document["rows"][0] |= {"size_bytes": n_bytes, "n_params": n_params}
    cells = report.as_markdown(document).splitlines()[2].split("|")
    assert (cells[2].strip(), cells[3].strip()) == (size, count)


def test_report_markdown_names_the_revision_and_a_changed_checkout(document):
    document["git"] = {"revision": "0123456789abcdef", "is_dirty": True}
    assert report.as_markdown(document).endswith("qllama 1.2.3 (012345678, changed) on A CPU\n")


def test_report_csv_has_a_line_a_row_with_everything_flat(document):
    document["git"] = {"revision": "0123", "is_dirty": False}
    lines = list(csv.DictReader(io.StringIO(report.as_csv(document))))
    assert [line["test"] for line in lines] == [row["test"] for row in document["rows"]]
    first = lines[0]
    assert [float(sample) for sample in first["samples_ts"].split()] == [8, 16]
    assert float(first["mean_ts"]) == 12
    assert first["gb_s"] == ""
    assert first["git_revision"] == "0123"
    assert first["cpu"] == "A CPU"
    limits = ("read_limit_gb_s", "weights_limit_gb_s", "dot4_limit_gop_s")
    assert [float(first[name]) for name in limits] == [20, 13.5, 200]
    assert not any(value and value[0] in "{[" for line in lines for value in line.values())


def test_report_of_nothing_is_an_empty_table(monkeypatch):
    empty = report.as_document(Results())
    assert empty["rows"] == []
    assert empty["is_complete"] is False
    assert report.as_csv(empty) == ""
    assert report.as_markdown(empty).startswith("| model |")
