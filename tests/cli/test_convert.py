"""`qllama convert`: what its flags ask of the converter, and its dry run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_gguf import write_gguf

from converter.sources.options import SourceOptions
from converter.sources.registry import FORMATS
from qllama.cli.options import SOURCE_FORMATS
from qllama.format import QlmFile


@pytest.fixture
def asked(monkeypatch):
    """Stand in for the converter; returns what it was called with."""
    calls = []

    def convert(source, out, type, *, on_progress, **rest):
        calls.append({"source": source, "out": out, "type": type} | rest)
        on_progress("converting", 1, 2)
        return SimpleNamespace(out=out or Path("made-up.qlm"), notices=("it is odd",))

    monkeypatch.setattr("converter.pipeline.convert", convert)
    return calls


@pytest.mark.parametrize(
    ("arguments", "out", "type"),
    [
        ("a.gguf", None, "q4"),
        ("a.gguf b.qlm --type Q8", "b.qlm", "q8"),
        ("a.gguf -o b.qlm --outtype f16", "b.qlm", "f16"),
        ("a.gguf --outfile b.qlm", "b.qlm", "q4"),
    ],
)
def test_convert_target_and_type_reach_the_converter(run, asked, arguments, out, type):
    result = run("convert", *arguments.split())
    assert [(c["source"], c["out"], c["type"]) for c in asked] == [
        (Path("a.gguf"), out and Path(out), type)
    ]
    assert result.stdout == f"{out or 'made-up.qlm'}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("-t 2", {"n_threads": 2, "check": True}),
        ("--no-check", {"check": False}),
        ("", {"options": SourceOptions(), "adapters": [], "n_threads": None, "fast": False}),
        ("--fast", {"fast": True}),
        ("--from Meta", {"options": SourceOptions(format="meta")}),
        (
            "--config c.json --tokenizer t --rope-layout interleaved",
            {"options": SourceOptions(None, Path("c.json"), Path("t"), "interleaved")},
        ),
    ],
)
def test_convert_flags_reach_the_converter(run, asked, arguments, expected):
    assert run("convert", "a", *arguments.split()).exit_code == 0
    assert {key: asked[0][key] for key in expected} == expected


def test_convert_formats_are_those_of_the_registry():
    assert tuple(FORMATS) == SOURCE_FORMATS


def test_convert_dry_run_lists_every_tensor_and_writes_nothing(run, tmp_path):
    source = write_gguf(tmp_path / "tiny.F32.gguf", tied=False)
    result = run("convert", str(source), str(tmp_path / "out.qlm"), "--dry-run")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    q_proj = next(line for line in lines if line.startswith("model.layers.1.self_attn.q_proj"))
    assert re.split(r" {2,}", q_proj)[1:] == [
        "256 x 256",
        "F32",
        "262,144",
        "q4",
        "38,912",
        f"{source}: tensor 'blk.1.attn_q.weight'",
    ]
    assert lines[-2] == f"{source}: 21 tensors, 5.3 MB"
    assert re.fullmatch(
        rf"would write {tmp_path / 'out.qlm'}: q4, 1\.3 M weights at 4\.\d\d bits, \d\.\d MB",
        lines[-1],
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.F32.gguf"]


def test_convert_dry_run_tells_the_size_that_a_conversion_gives(run, tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf")
    planned = run("convert", str(source), str(tmp_path / "out.qlm"), "--dry-run").stdout
    assert run("convert", str(source), str(tmp_path / "out.qlm")).exit_code == 0
    n_bytes = (tmp_path / "out.qlm").stat().st_size
    assert planned.endswith(f" bits, {n_bytes / 1e6:.1f} MB\n")


def test_convert_tensor_type_changes_the_matrices_that_it_names(run, tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf", tied=False)
    rules = ["--tensor-type", r"layers\.0\..*v_proj=F16", "--tensor-type", "lm_head=q4_0"]
    planned = run("convert", str(source), "--dry-run", *rules).stdout
    types = {line.split()[0]: line.split()[6] for line in planned.splitlines()[1:] if " x " in line}
    assert {name for name, type in types.items() if type == "f16"} == {
        "model.layers.0.self_attn.v_proj.weight"
    }
    assert {name for name, type in types.items() if type == "q4_0"} == {"lm_head.weight"}
    assert run("convert", str(source), str(tmp_path / "out.qlm"), *rules).exit_code == 0
    with QlmFile.open(tmp_path / "out.qlm") as file:
        assert {name: file.tensors[name].type for name in types} == types
        assert file.recipe["overrides"][1] == {"pattern": "lm_head", "type": "q4_0"}


def test_convert_tensor_type_that_names_no_matrix_is_refused(run, tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf")
    result = run("convert", str(source), str(tmp_path / "o.qlm"), "--tensor-type", "ffn_up=q4")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--tensor-type ffn_up=q4: expected a pattern" in result.stderr


def test_convert_dry_run_refuses_what_a_conversion_would_refuse(run, tmp_path):
    source = write_gguf(tmp_path / "tiny.gguf", tokenizer=False)
    result = run("convert", str(source), str(tmp_path / "out.qlm"), "--dry-run")
    assert (result.exit_code, result.stdout) == (1, "")


@pytest.mark.parametrize("obstacle", ["disk", "directory"])
def test_convert_dry_run_without_room_for_the_file_tells_its_size_first(
    run, tmp_path, monkeypatch, obstacle
):
    source = write_gguf(tmp_path / "tiny.gguf")
    leftover = tmp_path / ".out.qlm.01234567.partial"
    leftover.touch()
    out = tmp_path / ("absent/out.qlm" if obstacle == "directory" else "out.qlm")
    if obstacle == "disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    result = run("convert", str(source), str(out), "--dry-run")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith(f"would write {out}: q4, ")
    assert re.fullmatch(rf"qllama: error: {out}: cannot be written: [^\n]*\n", result.stderr)
    assert leftover.exists()
