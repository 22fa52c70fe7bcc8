"""What a bound model keeps to itself: little, however long its context."""

from __future__ import annotations

import psutil
from tiny_model import config, random_tensors, write_model

from qllama.format import QlmFile
from qllama.model.engine import Engine

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
