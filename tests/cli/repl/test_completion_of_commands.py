"""What Tab offers."""

from __future__ import annotations

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from qllama.cli.repl.completion import CommandCompleter
from qllama.hub.cache import models_dir


def offered(text):
    completions = CommandCompleter().get_completions(Document(text), CompleteEvent())
    return [text[: len(text) + c.start_position] + c.text for c in completions]


@pytest.mark.parametrize(
    ("text", "completed"),
    [
        ("/s", ["/set", "/show", "/save"]),
        ("/b", ["/bye"]),
        ("/set v", ["/set verbose"]),
        ("/set parameter top", ["/set parameter top_k", "/set parameter top_p"]),
        ("/set parameter top_k 1", []),
        ("/show t", ["/show template"]),
        ("/? sh", ["/? show", "/? shortcuts"]),
        ("/nonsense ", []),
        ("/tokens s", []),
        ("set", []),
        ("a message\n/s", []),
        ("/s\n/s", []),
    ],
)
def test_completion_offers_what_may_stand_there(text, completed):
    assert offered(text) == completed


def test_completion_of_load_offers_models_and_files(tmp_path, isolated_home, monkeypatch):
    models_dir().mkdir()
    (models_dir() / "smol-q8.qlm").touch()
    (tmp_path / "smol.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert offered("/load smol") == ["/load smollm2-135m", "/load smol-q8", "/load smol.gguf"]


def test_completion_offers_paths_where_a_file_is_wanted(tmp_path, monkeypatch):
    (tmp_path / "talk.session").touch()
    monkeypatch.chdir(tmp_path)
    assert offered("/restore ta") == ["/restore talk.session"]
