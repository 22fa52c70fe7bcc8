"""`Llama.from_pretrained`: the real client of the hub against a stand-in on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import serving

from qllama import Llama
from qllama.errors import ConversionError, ModelNotFoundError


@pytest.fixture
def hub(monkeypatch, gguf_file):
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        content = gguf_file.read_bytes()
        server.repos["org/name"] = {
            "README.md": b"Hello.",
            "tiny.Q8_0.gguf": content,
            "sub/tiny.F16.gguf": content,
        }
        yield server


def opened(*arguments, **options) -> Path:
    """Open a model, see that it answers, and return its file."""
    with Llama.from_pretrained(*arguments, **options) as llm:
        assert llm.create_completion("Hello", max_tokens=2)["usage"]["completion_tokens"] > 0
        return Path(llm.create_completion("Hello", max_tokens=1)["model"])


def downloads(hub):
    return [
        request for request in hub.requests if request.startswith("GET") and "/resolve/" in request
    ]


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        (None, "org--name-q4.qlm"),
        ("tiny.Q8_0.gguf", "org--name--tiny.Q8_0.gguf-q4.qlm"),
        ("*Q8_0.gguf", "org--name--tiny.Q8_0.gguf-q4.qlm"),
        ("*F16*", "org--name--sub--tiny.F16.gguf-q4.qlm"),
        ("sub/*", "org--name--sub--tiny.F16.gguf-q4.qlm"),
    ],
)
def test_from_pretrained_fetches_converts_and_then_asks_no_more(hub, cache, filename, expected):
    assert opened("org/name", filename) == cache / "models" / expected
    assert len(downloads(hub)) == 1
    hub.requests.clear()
    opened("org/name", filename, verbose=False)
    assert hub.requests == []


def test_from_pretrained_of_a_name_opens_what_chat_opens(tiny_model, cache):
    assert opened("tiny", type="q8") == cache / "models" / "tiny-q8.qlm"


def test_from_pretrained_passes_options_on_and_tells_of_its_stages(hub, capsys):
    with Llama.from_pretrained("org/name", "*Q8_0*", n_ctx=32, n_threads=1) as llm:
        assert llm.n_ctx == 32
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("qllama: downloading org/name (")
    assert len(lines) == len(set(lines))
    seen = []
    Llama.from_pretrained(
        "org/name", "*F16*", on_progress=lambda *stage: seen.append(stage)
    ).close()
    assert seen
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("where", ["cache_dir", "local_dir"])
def test_from_pretrained_downloads_where_it_is_told(hub, tmp_path, where):
    opened("org/name", "tiny.Q8_0.gguf", additional_files=["*.md"], **{where: tmp_path / "here"})
    (found,) = (tmp_path / "here").rglob("tiny.Q8_0.gguf")
    assert found.stat().st_size == len(hub.repos["org/name"]["tiny.Q8_0.gguf"])
    assert not list((tmp_path / "hf").rglob("*.gguf"))


@pytest.mark.parametrize(
    ("repo", "filename", "message"),
    [
        ("org/name", "*.gguf", "several: sub/tiny.F16.gguf, tiny.Q8_0.gguf; name a file"),
        ("org/name", "*Q2*", "one model, found none of README.md, sub/tiny.F16.gguf, tiny"),
        ("org/name", "other.gguf", "no GGUF file 'other.gguf'; there is sub/tiny"),
        ("org/missing", "*.gguf", "no such repository on the Hugging Face hub"),
        ("org/missing", None, "no such repository on the Hugging Face hub"),
        ("name", "*.gguf", "name: expected org/name, a repository"),
        ("org/name:q8", "*.gguf", "expected org/name, a repository"),
    ],
)
def test_from_pretrained_that_finds_nothing_says_so_in_one_line(hub, repo, filename, message):
    with pytest.raises(ModelNotFoundError) as raised:
        Llama.from_pretrained(repo, filename)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_from_pretrained_type_that_is_none_is_refused(hub):
    with pytest.raises(ConversionError, match="found 'q3'"):
        Llama.from_pretrained("org/name", "*Q8_0*", type="q3")
    assert hub.requests == []
