"""Where keys and values of one position go, byte for byte, and what is rounded."""

from __future__ import annotations

import numpy as np
import pytest
from packing import address, aligned, aligned_copy, padded

from qllama.kernels import reference
from qllama.kernels.kv_layout import (
    CHUNK,
    F16,
    KV_TYPES,
    Q8,
    append_key,
    append_value,
    chunk_bytes,
)

each_type = pytest.mark.parametrize("kv_type", range(len(KV_TYPES)), ids=KV_TYPES)
each_position = pytest.mark.parametrize("position", [0, 15, 16, 31, 32, 255, 256, 300])


def appended(kv_type, head_size, position, row):
    """Bytes of two chunks of keys and of values, zero but for one position's."""
    memory = [aligned(2 * chunk_bytes(kv_type, head_size), np.uint8) for _ in range(2)]
    for append, target in zip((append_key, append_value), memory, strict=True):
        append(kv_type, address(target), position, address(row), head_size)
    return memory


def sample(head_size, scale=1.0):
    rng = np.random.default_rng(head_size)
    return aligned_copy((scale * rng.standard_normal(head_size)).astype(np.float32))


def key_codes(keys, head_size):
    """(positions, head_size) codes and (positions, blocks) scales of q8 keys."""
    tiles = keys.reshape(-1, head_size // 32, 544)
    codes = tiles[..., :512].reshape(-1, head_size // 32, 8, 16, 4).transpose(0, 3, 1, 2, 4)
    scales = np.ascontiguousarray(tiles[..., 512:]).view(np.float16).transpose(0, 2, 1)
    return codes.reshape(-1, head_size).astype(int) - 128, scales.reshape(-1, head_size // 32)


def value_codes(values, head_size):
    panels = values.reshape(2, head_size // 32, CHUNK * 34)
    codes = panels[..., : CHUNK * 32].reshape(2, -1, CHUNK, 32).transpose(0, 2, 1, 3)
    scales = np.ascontiguousarray(panels[..., CHUNK * 32 :]).view(np.float16).transpose(0, 2, 1)
    return codes.reshape(-1, head_size).view(np.int8), scales.reshape(-1, head_size // 32)


@each_position
@pytest.mark.parametrize("head_size", [32, 64, 96])
def test_append_f16_writes_one_position_of_its_panels(position, head_size):
    row = sample(head_size)
    keys, values = appended(F16, head_size, position, row)
    panels = keys.view(np.float16).reshape(-1, head_size, 32).transpose(0, 2, 1)
    by_position = panels.reshape(-1, head_size)
    np.testing.assert_array_equal(by_position[position], row.astype(np.float16))
    assert not np.delete(by_position, position, 0).any()
    panels = values.view(np.float16).reshape(2, -1, CHUNK, 32).transpose(0, 2, 1, 3)
    by_position = panels.reshape(-1, head_size)
    np.testing.assert_array_equal(by_position[position], row.astype(np.float16))
    assert not np.delete(by_position, position, 0).any()


@each_position
@pytest.mark.parametrize("head_size", [32, 64, 96])
def test_append_q8_writes_one_position_of_its_tiles(position, head_size):
    row = sample(head_size)
    keys, values = appended(Q8, head_size, position, row)
    expected = reference.kv_rounded(row, "q8")
    for codes, scales in (key_codes(keys, head_size), value_codes(values, head_size)):
        held = codes[position] * np.repeat(scales[position].astype(np.float32), 32)
        np.testing.assert_array_equal(held, expected)
        assert not np.delete(scales, position, 0).any()
    written = np.flatnonzero(keys)
    assert len(written) <= head_size + 2 * head_size // 32


@each_type
@pytest.mark.parametrize("scale", [1e-36, 1e-6, 1.0, 1e4, 1e6, 3e37])
def test_append_any_magnitude_is_finite_and_as_the_reference_rounds(kv_type, scale):
    row = sample(64, scale)
    keys, values = appended(kv_type, 64, 5, row)
    expected = reference.kv_rounded(row, KV_TYPES[kv_type])
    assert np.isfinite(expected).all()
    if kv_type == F16:
        held = values.view(np.float16).reshape(2, 2, CHUNK, 32)[0, :, 5].reshape(-1)
        np.testing.assert_array_equal(held.astype(np.float32), expected)
        return
    for codes, scales in (key_codes(keys, 64), value_codes(values, 64)):
        held = codes[5] * np.repeat(scales[5].astype(np.float32), 32)
        np.testing.assert_array_equal(held, expected)


def test_kv_rounded_q8_error_is_at_most_half_a_step():
    row = sample(padded(500))
    step = np.repeat(np.abs(row).reshape(-1, 32).max(1) / 127, 32)
    error = np.abs(reference.kv_rounded(row, "q8") - row)
    # The scale's own rounding to a half moves a code of 127 by 127 * 2**-11 of a step.
    assert (error <= (0.5 + 127 * 2.0**-11) * step).all()


def test_chunk_bytes_of_q8_are_little_more_than_half_of_f16():
    assert chunk_bytes(Q8, 64) / chunk_bytes(F16, 64) == 34 / 64
