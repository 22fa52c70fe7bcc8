"""What is compiled ahead is what the engine calls."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import config, random_tensors, write_model

from qllama.format import QlmFile
from qllama.kernels.team import _call, _serve
from qllama.kernels.weight_kernels import WEIGHT_KERNELS
from qllama.model.arena import Arena
from qllama.model.decoder import decoder
from qllama.model.engine import Engine
from qllama.model.warmup import warmup


def told_by(*types):
    told = []
    warmup(*types, on_compile=lambda *seen: told.append(seen))
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert {total for *_, total in told} == {len(told) - 1}
    assert told[-1][0] == ""
    return [name for name, *_ in told[:-1]]


def test_warmup_without_types_makes_every_kernel():
    expected = [f"{kernel.name} matrix product" for kernel in WEIGHT_KERNELS]
    assert told_by() == [*expected, "decoder", "sampling", "decoder in stages"]


@pytest.mark.parametrize("types", [[], ["q4"], {"q8_0", "f16"}])
def test_warmup_of_some_types_makes_those_alone(types):
    expected = [f"{k.name} matrix product" for k in WEIGHT_KERNELS if k.name in set(types)]
    assert told_by(types) == [*expected, "decoder", "sampling"]


def test_warmup_leaves_nothing_to_compile_when_the_engine_evaluates(tmp_path):
    made = config(num_hidden_layers=1)
    path = write_model(tmp_path / "tiny.qlm", made, random_tensors(made))
    with QlmFile.open(path) as file:
        engine = Engine(file, n_ctx=16, n_threads=2)
        before = decoder.cache_info().misses, list(_call.signatures), list(_serve.signatures)
        engine.evaluate([1, 2], position=0)
        engine.close()
    assert before == (1, list(_call.signatures), list(_serve.signatures))
    assert [len(signatures) for signatures in before[1:]] == [1, 1]


def test_arena_pieces_are_aligned_zeroed_and_apart():
    arena = Arena()
    sizes = {"one": 1, "none": 0, "page": 4096, "odd": 130}
    for name, n_bytes in sizes.items():
        arena.reserve(name, n_bytes)
    addresses = arena.allocate()
    start, end = arena._memory.ctypes.data, arena._memory.ctypes.data + arena._memory.nbytes
    pieces = sorted((addresses[name], n) for name, n in sizes.items())
    for (address, n_bytes), (following, _) in zip(pieces, [*pieces[1:], (end, 0)], strict=True):
        assert address % 128 == 0
        assert start <= address <= address + n_bytes <= following
    assert not np.any(arena._memory)
