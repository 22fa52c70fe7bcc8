"""`verify`, `tokenize`, `convert`, `pull` and `warmup`, with small files or stand-ins."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


def test_verify_good_file_exits_0(run, tiny_qlm):
    result = run("verify", str(tiny_qlm))
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{tiny_qlm}: good (11 tensors, ")


def test_verify_damaged_tensor_exits_1_and_names_it(run, tiny_qlm, tmp_path):
    data = bytearray(tiny_qlm.read_bytes())
    data[-1] ^= 1
    path = tmp_path / "damaged.qlm"
    path.write_bytes(data)
    result = run("verify", str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "tensor 'model.norm.weight': checksum" in result.stderr


def test_tokenize_shows_ids_and_bytes(run, tiny_qlm):
    result = run("tokenize", str(tiny_qlm), "aé")
    assert result.stdout.splitlines() == [
        "   256 -> <|begin|>",
        "    64 -> b'a'",
        "   127 -> b'\\xc3'",
        "   102 -> b'\\xa9'",
    ]


@pytest.mark.parametrize("arguments", [["MODEL", "aé", "--ids"], ["-m", "MODEL", "--ids", "aé"]])
def test_tokenize_ids_is_one_list(run, tiny_qlm, arguments):
    arguments = [str(tiny_qlm) if a == "MODEL" else a for a in arguments]
    assert run("tokenize", *arguments).stdout == "[256, 64, 127, 102]\n"


def test_tokenize_dash_reads_stdin(run, tiny_qlm):
    assert run("tokenize", str(tiny_qlm), "-", "--ids", stdin="a\n").stdout == "[256, 64, 198]\n"


def test_tokenize_special_token_look_alike_is_plain_text(run, tiny_qlm):
    result = run("tokenize", str(tiny_qlm), "<|end|>", "--ids")
    assert "257" not in result.stdout


def test_tokenize_single_argument_is_text_for_the_default_model(run, tiny_qlm, monkeypatch):
    asked = []
    monkeypatch.setattr("qllama.cli.tokenize.model_path", lambda m: asked.append(m) or tiny_qlm)
    assert run("tokenize", "a", "--ids").stdout == "[256, 64]\n"
    assert asked == [None]


@pytest.fixture
def fake_convert(monkeypatch):
    """Stand in for the converter; returns what it was called with."""
    calls = []

    def convert(source, out, type, on_progress, n_threads):
        calls.append((source, out, type, n_threads))
        on_progress("converting", 1, 2)
        on_progress("converting", 2, 2)
        return SimpleNamespace(out=out or Path("made-up.qlm"), __str__=lambda self: "made")

    pipeline = ModuleType("converter.pipeline")
    pipeline.convert = convert
    monkeypatch.setitem(sys.modules, "converter.pipeline", pipeline)
    return calls


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ("a.gguf", ("a.gguf", None, "q4", None)),
        ("a.gguf b.qlm --type Q8", ("a.gguf", "b.qlm", "q8", None)),
        ("a.gguf -o b.qlm --outtype f16 -t 2", ("a.gguf", "b.qlm", "f16", 2)),
        ("a.gguf --outfile b.qlm", ("a.gguf", "b.qlm", "q4", None)),
    ],
)
def test_convert_flags_reach_the_converter(run, fake_convert, arguments, call):
    result = run("convert", *arguments.split())
    source, out, *rest = call
    assert fake_convert == [(Path(source), out and Path(out), *rest)]
    assert result.stdout == f"{out or 'made-up.qlm'}\n"


def test_pull_prints_the_path(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "qllama.cli.pull.model_path", lambda *args: asked.append(args) or Path("a/b.qlm")
    )
    result = run("pull", "some/name", "--type", "q8")
    assert result.stdout == f"{Path('a/b.qlm')}\n"
    assert asked == [("some/name", "q8")]
