"""`verify`, `tokenize`, `pull` and `warmup`, with small files or stand-ins."""

from __future__ import annotations

from pathlib import Path

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


def test_pull_prints_the_path(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "qllama.cli.pull.model_path", lambda *args: asked.append(args) or Path("a/b.qlm")
    )
    result = run("pull", "some/name", "--type", "q8")
    assert result.stdout == f"{Path('a/b.qlm')}\n"
    assert asked == [("some/name", "q8")]
