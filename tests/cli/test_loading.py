"""From the MODEL of a command line to a loaded model, with the layers below stood in for."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from qllama.cli.loading import load_model, model_path
from qllama.cli.runtime import RuntimeOptions


@pytest.fixture
def resolved(monkeypatch):
    """Note what the hub is asked for; it finds everything at once."""
    asked = []

    def resolve_model(name, *, type, on_progress):
        on_progress("fetching", 1, 2)
        asked.append((name, type))
        return Path("found.qlm")

    monkeypatch.setattr("qllama.hub.resolve.resolve_model", resolve_model)
    return asked


def test_model_path_asks_the_hub_for_name_and_type(resolved, capsys):
    assert model_path("some/name", "q8") == Path("found.qlm")
    assert resolved == [("some/name", "q8")]
    assert capsys.readouterr().err == ""


def test_load_model_passes_the_runtime_options_on(resolved, monkeypatch):
    loaded = []

    def llama(path, *, on_load, on_compile, **options):
        assert not gc.isenabled()
        on_load(1, 2)
        on_compile("a kernel", 0, 1)
        loaded.append((path, options))
        return "a model"

    monkeypatch.setattr("qllama.api.Llama", llama)
    adapters = ("some/dir", "other=0.5")
    runtime = RuntimeOptions(9, 2, 3, "q8", False, adapters, "small")
    assert load_model(None, runtime) == "a model"
    assert resolved == [(None, "q4"), ("small", "q4")]
    options = {"n_ctx": 9, "n_threads": 2, "n_batch": 3, "kv_type": "q8", "use_mmap": False}
    options["draft_model"] = Path("found.qlm")
    options["lora"] = [(Path("some/dir"), 1.0), (Path("other"), 0.5)]
    assert loaded == [(Path("found.qlm"), options)]
    assert gc.isenabled()


def test_warmup_compiles_with_one_stage_of_progress(run, monkeypatch):
    def warmup(*, on_compile):
        on_compile("first kernel", 0, 2)
        on_compile("second kernel", 1, 2)

    monkeypatch.setattr("qllama.model.warmup.warmup", warmup)
    result = run("warmup")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "qllama: all kernels are compiled\n"
