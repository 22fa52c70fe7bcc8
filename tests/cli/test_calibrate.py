"""`qllama calibrate`: from a text to the file that `convert --importance` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_gguf import write_gguf

from converter.importance import read_importance
from converter.sources.gguf import GgufSource
from qllama.format import QlmFile


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("abcdefghij" * 5)
    return write_gguf(tmp_path / "m.F32.gguf")


def test_calibrate_prints_the_path_of_what_convert_takes(run, source):
    done = run("calibrate", str(source), "-f", "a.txt", "-c", "16")
    assert done.stdout == "m-imatrix.gguf\n"
    assert "15 matrices, 48 tokens in 3 windows" in done.stderr
    shapes = {name: tensor.shape for name, tensor in GgufSource(source).tensors.items()}
    found = read_importance(Path("m-imatrix.gguf"), shapes)
    assert found.provenance["texts"] == ["a.txt"]
    for option in ("--importance", "--imatrix"):
        run("convert", str(source), "m.qlm", option, done.stdout.strip(), "--no-check")
        with QlmFile.open(Path("m.qlm")) as file:
            assert file.provenance["importance"] == found.provenance
        Path("m.qlm").unlink()


def test_calibrate_reads_the_first_windows_of_a_qlm_too(run, source):
    run("convert", str(source), "m.qlm", "--type", "f32", "--no-check")
    done = run("calibrate", "-m", "m.qlm", "-f", "a.txt", "-c", "16", "--chunks", "2", "-o", "i")
    assert (done.exit_code, done.stdout) == (0, "i\n")
    assert "32 tokens in 2 windows" in done.stderr


def test_calibrate_a_name_is_converted_to_f16(run, source, monkeypatch):
    asked = []

    def model_path(model, weight_type):
        asked.append((model, weight_type))
        return source

    monkeypatch.setattr("qllama.cli.calibrate.model_path", model_path)
    run("calibrate", "org/name", "-f", "a.txt", "-c", "16")
    assert asked == [("org/name", "f16")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("m.F32.gguf -f none.txt", "none.txt: No such file"),
        ("m.F32.gguf -f a.txt -c 40", "a.txt: expected at least 80 tokens"),
        ("m.F32.gguf -f a.txt -c 16 -o none/i.gguf", "none/i.gguf: cannot be written: No such"),
        ("a.txt -f a.txt -c 16", "a.txt: "),
    ],
)
def test_calibrate_that_cannot_be_done_is_one_line(run, source, arguments, message):
    done = run("calibrate", *arguments.split())
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"qllama: error: {message}")


def test_convert_with_importance_of_another_model_is_one_line(run, source):
    run("calibrate", str(source), "-f", "a.txt", "-c", "16", "-o", "i.gguf")
    write_gguf(Path("untied.gguf"), tied=False)
    done = run("convert", "untied.gguf", "--importance", "untied.gguf")
    assert done.exit_code == 1
    assert done.stderr.startswith("qllama: error: untied.gguf: expected an importance file")
