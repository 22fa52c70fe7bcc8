"""Rows of the cache by position: what was stored, whatever the layout, and back again."""

from __future__ import annotations

import numpy as np
import pytest
from packing import address, aligned_copy

from qllama.kernels.kv_layout import (
    CHUNK,
    F16,
    KV_TYPES,
    Q8,
    append_key,
    append_value,
    chunk_bytes,
)
from qllama.kernels.kv_rows import row_widths, to_chunks, to_floats, to_rows

SHAPE = N_LAYERS, N_HEADS, N_CHUNKS = 2, 3, 2
each_type = pytest.mark.parametrize("kv_type", range(len(KV_TYPES)), ids=KV_TYPES)


def stored(kv_type, head_size, n_positions):
    """Chunks into which the kernels put random keys and values, and these."""
    rng = np.random.default_rng(n_positions)
    size = chunk_bytes(kv_type, head_size)
    chunks = aligned_copy(np.zeros((2, *SHAPE, size), np.uint8))
    floats = rng.standard_normal((2, N_LAYERS, N_HEADS, n_positions, head_size))
    floats = aligned_copy(floats.astype(np.float32))
    for kind, append in enumerate((append_key, append_value)):
        for layer, head, position in np.ndindex(N_LAYERS, N_HEADS, n_positions):
            target = address(chunks) + size * N_CHUNKS * (
                head + N_HEADS * (layer + N_LAYERS * kind)
            )
            row = np.ascontiguousarray(floats[kind, layer, head, position])
            append(kv_type, target, position, address(aligned_copy(row)), head_size)
    return chunks, floats


@pytest.mark.parametrize("head_size", [32, 96])
def test_to_rows_f16_gives_each_position_its_halves(head_size):
    chunks, floats = stored(F16, head_size, CHUNK + 3)
    rows = to_rows(chunks, F16, head_size, CHUNK + 3)
    halves = floats.astype(np.float16)
    np.testing.assert_array_equal(rows.view(np.float16), halves)
    np.testing.assert_array_equal(to_floats(rows, F16, head_size), halves.astype(np.float32))


@pytest.mark.parametrize("head_size", [32, 96])
def test_to_rows_q8_gives_each_position_its_codes_and_scales(head_size):
    n = CHUNK + 3
    chunks, floats = stored(Q8, head_size, n)
    rows = to_rows(chunks, Q8, head_size, n)
    n_codes, n_scales = row_widths(Q8, head_size)
    assert rows.shape == (2, N_LAYERS, N_HEADS, n, n_codes + 2 * n_scales)
    blocks = floats.reshape(*floats.shape[:-1], n_scales, 32)
    decoded = to_floats(rows, Q8, head_size).reshape(blocks.shape)
    # A code rounds to half a step; its half-precision scale is off by 2**-11 of 127 steps.
    bound = np.abs(blocks).max(axis=-1, keepdims=True) / 127 * (0.5 + 127 * 2.0**-11)
    assert (np.abs(decoded - blocks) <= bound * 1.001).all()


@each_type
@pytest.mark.parametrize("n_positions", [1, 40, CHUNK, 2 * CHUNK])
def test_to_chunks_undoes_to_rows_and_leaves_nothing_else(kv_type, n_positions):
    chunks, _ = stored(kv_type, 64, n_positions)
    kept = chunks[:, :, :, : -(-n_positions // CHUNK)]
    rows = to_rows(kept, kv_type, 64, n_positions)
    again = to_chunks(rows, kv_type, 64)
    np.testing.assert_array_equal(again, kept)
    # What other positions hold is not of the text: it must not come along.
    dirty = kept.copy()
    dirty[to_chunks(np.full_like(rows, 255), kv_type, 64) == 0] = 99
    np.testing.assert_array_equal(to_rows(dirty, kv_type, 64, n_positions), rows)


@each_type
def test_to_rows_no_positions_gives_none_and_back(kv_type):
    none = np.zeros((2, *SHAPE[:2], 0, chunk_bytes(kv_type, 64)), np.uint8)
    rows = to_rows(none, kv_type, 64, 0)
    assert rows.shape[:4] == (2, *SHAPE[:2], 0)
    assert to_chunks(rows, kv_type, 64).shape == none.shape
