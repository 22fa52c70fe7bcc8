"""Documents as tables, in Markdown files and in pictures; and the launcher."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from harness.comparison import Comparison, Side
from harness.document import new_document, write
from harness.kernel_rows import Row, kernel_table
from harness.program import LAUNCH
from harness.quality_rows import QualityRow
from harness.reports import as_markdown, filled
from harness.start_rows import startup_table
from qllama.bench.plan import Test as BenchTest

ROOT = Path(__file__).parents[2]
ROW = Row("1b", "q4_0", "down_proj 2048 x 8192", 1, "GB/s", [18.0, 20.0, 30.0], [20.0, 20.0, 40.0])

QUALITY = QualityRow("qllama", "q4", "q4.qlm", 80_000_000, 4.8, 12.0, 0.5, 0.02, 0.001, 0.9)


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def comparison(test, ours, theirs):
    details = {"gb_s": 20.0, "read_share": 0.8, "gop_s": 1.0, "dot4_share": 0.1}
    return Comparison(
        "1B",
        test,
        2,
        Side("qllama", "1b.qlm", rounds=[[ours]], details=[details]),
        [Side("rival", "1b.gguf", rounds=[[theirs]])],
    )


@pytest.fixture
def documents(tmp_path):
    """Files of one document of each kind, by benchmark."""
    decode = [
        comparison(BenchTest(0, 64, depth, many), 30.0, 20.0)
        for depth, many in ((0, 1), (2048, 1), (0, 8))
    ]
    starts = {"qllama 1b": [{"seconds_to_output": 0.5, "seconds": 0.7, "peak_rss_bytes": 2**30}]}
    contents = {
        "side_by_side": {"comparisons": [comparison(BenchTest(512, 0), 300.0, 100.0), *decode]},
        "scaling": {"comparisons": decode},
        "kernels": {"kernels": [ROW]},
        "quality": {"rows": [QUALITY]},
        "startup": {"starts": starts, "open_seconds": {"qllama 1b": [0.004]}},
    }
    paths = {}
    for name, content in contents.items():
        paths[name] = tmp_path / f"{name}.json"
        write(new_document(name, {}, content), paths[name])
    return paths


def test_kernel_table_share_is_of_the_limit_beside_each_sample():
    line = cells(kernel_table([ROW]))[2]
    assert line[4:] == ["20 GB/s", "20 GB/s", "90% (75%-100%)"]


def test_startup_table_has_medians_and_open_times_where_known():
    samples = [
        {"seconds_to_output": seconds, "seconds": 2 * seconds, "peak_rss_bytes": 100 * 2**20}
        for seconds in (0.3, 0.9, 0.4)
    ]
    table = startup_table({"ours": samples, "theirs": samples}, {"ours": [0.002, 0.001, 0.009]})
    assert cells(table)[2:] == [
        ["ours", "0.40", "0.80", "100", "2.0"],
        ["theirs", "0.40", "0.80", "100", ""],
    ]


def test_filled_replaces_what_is_in_a_place_and_nothing_else(documents, tmp_path):
    text = (
        "# Title\n\n<!-- results: startup.json -->\nold\n\n| old |\n"
        "<!-- end of results -->\nafter\n"
        "<!-- results: kernels.json -->\n<!-- end of results -->\nend\n"
    )
    once = filled(text, tmp_path)
    assert "old" not in once
    assert once.startswith("# Title\n\n<!-- results: startup.json -->\n| start ")
    assert "<!-- end of results -->\nafter\n<!-- results: kernels.json -->\n| model" in once
    assert once.endswith("<!-- end of results -->\nend\n")
    assert filled(once, tmp_path) == once


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rounds": 3, "repetitions": 1, "variants": []}, "3 rounds of 1 sample."),
        ({"rounds": 1, "repetitions": 2}, "1 round of 2 samples."),
        ({"repetitions": 5}, "5 samples."),
    ],
)
def test_document_says_how_often_everything_was_measured(settings, said):
    document = new_document("kernels", settings, {"kernels": [asdict(ROW)]})
    assert as_markdown(document).endswith(f"; {said}\n")


def test_document_measured_once_says_no_number():
    document = new_document("quality", {"text": "a.txt"}, {"rows": [asdict(QUALITY)]})
    assert re.search(r", numba [0-9.]+\.\n$", as_markdown(document))


def test_document_that_is_not_complete_says_so():
    document = new_document("kernels", {"rounds": 2}, {"kernels": [], "is_complete": False})
    assert as_markdown(document).endswith("2 rounds; **not all that was to be measured**.\n")


def test_filled_place_without_a_document_is_kept(tmp_path):
    text = "<!-- results: gone.json -->\nas before\n<!-- end of results -->\n"
    assert filled(text, tmp_path) == text


def test_filled_place_of_another_file_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    text = "<!-- results: other.json -->\n<!-- end of results -->\n"
    with pytest.raises(click.ClickException, match=r"other\.json: expected a benchmark's"):
        filled(text, tmp_path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_docs_results_are_those_of_the_documents(path):
    text = path.read_text(encoding="utf-8")
    documents = re.findall(r"<!-- results: (\S+) -->", text)
    assert [name for name in documents if not (path.parent / name).exists()] == []
    # Else: python benchmarks/fill_docs.py docs/benchmarks.md
    assert filled(text, path.parent) == text


def test_docs_name_every_script():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    scripts = [path.name for path in ROOT.glob("benchmarks/*.py")]
    assert [name for name in scripts if f"`{name}`" not in text] == []


def test_plot_draws_every_picture_of_a_document(documents, tmp_path):
    pytest.importorskip("matplotlib")
    import plot

    out = tmp_path / "pictures"
    paths = [str(documents[name]) for name in plot.PICTURES]
    done = CliRunner().invoke(plot.main, [*paths, "-o", str(out)])
    assert done.exit_code == 0, done.output
    wanted = {
        f"{picture or name}.svg" for name, found in plot.PICTURES.items() for picture in found
    }
    assert {path.name for path in out.iterdir()} == wanted
    decode = (out / "decode.svg").read_text(encoding="utf-8")
    assert ">tg64 @ d2048<" in decode
    assert ">rival<" in decode
    assert ">pp512<" in (out / "prefill.svg").read_text(encoding="utf-8")


def test_plot_more_rivals_than_colours_of_our_own_are_all_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    import plot

    found = [comparison(BenchTest(n, 64 - n), 30.0, 20.0) for n in (0, 64)]
    for each in found:
        each.rivals = [Side(f"rival {i}", "1b.gguf", rounds=[[20.0]]) for i in range(20)]
    document = tmp_path / "side_by_side.json"
    write(new_document("side_by_side", {}, {"comparisons": found}), document)
    done = CliRunner().invoke(plot.main, [str(document), "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    drawn = (tmp_path / "decode.svg").read_text(encoding="utf-8")
    assert all(f">rival {i}<" in drawn for i in range(20))


def test_plot_document_without_pictures_is_refused(documents):
    import plot

    done = CliRunner().invoke(plot.main, [str(documents["startup"])])
    assert done.exit_code == 1
    assert "found startup" in done.output


@pytest.mark.skipif(sys.platform == "win32", reason="resource is a Unix module")
def test_launch_counts_the_command_alone():
    program = "import sys; x = bytearray(50_000_000); print('out'); sys.exit(3)"
    done = subprocess.run(
        [*LAUNCH, sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    sample = json.loads(done.stdout)
    assert sample["exit_code"] == 3
    assert 0 < sample["seconds_to_output"] <= sample["seconds"]
    # The array is there, and this process, which is far larger, is not.
    assert 50_000_000 < sample["peak_rss_bytes"] < 100_000_000
