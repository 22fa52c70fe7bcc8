"""A way to run the command line, with a scripted model or a tiny file behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_llama import FakeLlama
from tiny_qlm import write_tiny_qlm

from qllama.cli import cli


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run `qllama` with the given arguments; `stdin` is text or bytes piped in."""

    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin, prog_name="qllama")

    return invoke


@pytest.fixture
def fake_llama(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeLlama]:
    """Make `chat` and `generate` talk with a FakeLlama of the given answers."""

    def install(*answers: Sequence[str | BaseException]) -> FakeLlama:
        fake = FakeLlama(answers)
        monkeypatch.setattr("qllama.cli.chat.load_model", fake.load)
        monkeypatch.setattr("qllama.cli.generate.load_model", fake.load)
        return fake

    return install


@pytest.fixture(scope="session")
def tiny_qlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tiny model file; not to be changed."""
    return write_tiny_qlm(tmp_path_factory.mktemp("cli") / "tiny.qlm")
