"""The probes do all the work that `qllama bench` divides by the time."""

from __future__ import annotations

import numpy as np
import pytest

from qllama.kernels import probes
from qllama.kernels.dot import MAX_STEPS
from qllama.kernels.isa import current_isa
from qllama.kernels.team import ThreadTeam


@pytest.fixture(params=[1, 3])
def team(request):
    made = ThreadTeam(request.param)
    yield made
    made.close()


def aligned(values):
    room = np.zeros(values.nbytes + 64, np.uint8)
    view = room[-room.ctypes.data % 64 :][: values.nbytes].view(values.dtype)
    view[:] = values.ravel()
    return view


def run(team, probe, operands, size, n_pieces):
    """Run a probe and add up what its threads left."""
    sums = np.full(team.n_threads, -1, np.int64)
    fields = (team.state, operands.ctypes.data, size, n_pieces, sums.ctypes.data)
    record = np.array(fields, probes.PROBE)
    team.run(probe().address, record.ctypes.data)
    return sums.sum()


@pytest.mark.parametrize("probe", [probes.read_probe, probes.read_ahead_probe])
def test_probes_reading_adds_up_every_word(team, probe):
    n_pieces, piece_bytes = 7, 3 * probes.READ_UNIT
    words = aligned(np.random.default_rng(0).integers(0, 2**32, n_pieces * piece_bytes // 4, "u4"))
    pieces = words.reshape(n_pieces, -1).sum(axis=1, dtype=np.uint64) % 2**32
    assert run(team, probe, words, piece_bytes, n_pieces) == pieces.sum()


def test_probes_dot_products_are_all_computed(team):
    n_blocks, n_pieces = 6, 5
    n_rows = probes.DOT_CODES + probes.DOT_RING * MAX_STEPS * probes.DOT_ROWS
    rng = np.random.default_rng(1)
    operands = rng.integers(0, 16, (n_rows, 64)).astype(np.int8)
    operands[: probes.DOT_CODES] = rng.integers(-127, 128, (probes.DOT_CODES, 64))
    used = operands[:, : 4 * current_isa().lanes].astype(np.int64)
    codes, ring = used[: probes.DOT_CODES], used[probes.DOT_CODES :]
    blocks = ring.reshape(probes.DOT_RING, MAX_STEPS * probes.DOT_ROWS, -1)
    taken = blocks[np.arange(n_blocks) % probes.DOT_RING]
    piece = np.einsum("brk,ck->", taken, codes) % 2**32
    assert run(team, probes.dot4_probe, aligned(operands), n_blocks, n_pieces) == n_pieces * piece
