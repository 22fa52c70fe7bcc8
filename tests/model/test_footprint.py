"""What memory a model takes: its file's pages, and little of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import psutil
import pytest
from tiny_model import config, random_tensors, write_model

from qllama.format import QlmFile
from qllama.memory import zeroed_pages
from qllama.model.engine import Engine
from qllama.model.footprint import Footprint

MIB = 2**20


def test_engine_of_a_long_context_commits_little_for_one_token_a_slot(tmp_path):
    made = config(max_position_embeddings=2**17)
    path = write_model(tmp_path / "tiny.qlm", made, random_tensors(made), "q8_0")
    n_slots = 32
    with QlmFile.open(path) as file:
        engine = Engine(file, n_ctx=0, n_threads=1, n_slots=n_slots)
        engine.evaluate([1], position=0)
        before = psutil.Process().memory_info().rss
        for slot in range(1, n_slots):
            engine.evaluate([1], position=0, slot=slot)
        committed = psutil.Process().memory_info().rss - before
        engine.close()
    # 256 places of keys and values, megabytes apart: huge pages would commit 512 MiB.
    assert committed < 64 * MIB


@pytest.mark.parametrize(
    ("weight_type", "changes"),
    [
        ("q8_0", {"kv_type": "q8"}),
        ("f16", {"n_threads": 3}),
        ("q8_0", {"n_ctx": 300, "n_batch": 500}),
    ],
)
def test_footprint_is_what_an_engine_reserves(tmp_path, monkeypatch, weight_type, changes):
    made = config(num_attention_heads=8, head_dim=24)
    path = write_model(tmp_path / "tiny.qlm", made, random_tensors(made), weight_type)
    reserved = {"kv_cache": [], "arena": []}
    for module, sizes in reserved.items():
        monkeypatch.setattr(
            f"qllama.model.{module}.zeroed_pages",
            lambda n_bytes, sizes=sizes: sizes.append(n_bytes) or zeroed_pages(n_bytes),
        )
    settings = {"n_ctx": 640, "n_threads": 1} | changes
    with QlmFile.open(path) as file:
        Engine(file, **settings).close()
    counted = Footprint.of(made, {weight_type}, **settings)
    assert counted.kv_n_bytes == sum(reserved["kv_cache"])
    # Each of the arena's pieces is rounded up to 128 bytes.
    (arena,) = reserved["arena"]
    assert counted.buffers_n_bytes <= arena < counted.buffers_n_bytes + 16 * 128


# Runs alone, so that what it has is a model's. Prints anonymous and file-backed bytes.
FOOTPRINT = """
import json, sys
from qllama.format import QlmFile
from qllama.model.engine import Engine

def bytes_of(kind):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind + ":"))

file = QlmFile.open(sys.argv[1], use_mmap=sys.argv[2] == "mapped")
engine = Engine(file, n_ctx=64, n_threads=1)
engine.evaluate([1, 2, 3], position=0)
print(json.dumps([bytes_of("RssAnon"), bytes_of("RssFile")]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tells the kinds of memory apart as Linux does")
def test_engine_on_a_mapped_file_copies_no_weights(tmp_path):
    # 64 MiB of weights, nearly all of them in the embedding and the head.
    made = config(vocab_size=2**18, hidden_size=64, tie_word_embeddings=False)
    shape = (made.vocab_size, made.hidden_size)
    tensors = random_tensors(config()) | {
        name: np.ones(shape, np.float32) for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    path = write_model(tmp_path / "wide.qlm", made, tensors, "f16")
    n_bytes = path.stat().st_size
    assert n_bytes > 64 * MIB
    (mapped, mapped_file), (read, _) = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", FOOTPRINT, path, how],
                check=True,
                capture_output=True,
                timeout=300,
            ).stdout
        )
        for how in ("mapped", "read")
    )
    assert mapped < 200 * MIB
    assert mapped_file > 32 * MIB
    assert read - mapped > n_bytes - 16 * MIB
