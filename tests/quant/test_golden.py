"""Bytes of tiny matrices, worked out by hand from docs/format.md: the storage order is pinned."""

from __future__ import annotations

import numpy as np
import pytest

from qllama.quant import codec

ONE_F16 = [0x00, 0x3C]


def floats(bytes_of_row_0, bytes_of_row_2, item_size):
    """(3, 2) -> one tile of 32 k x 16 rows, all zero but rows 0 and 2 of k = 0, 1."""
    tile = np.zeros((32, 16, item_size), np.uint8)
    for k in (0, 1):
        tile[k, 0], tile[k, 2] = bytes_of_row_0[k], bytes_of_row_2[k]
    return tile.reshape(-1)


FLOAT_WEIGHTS = np.array([[1.0, -2.0], [0.0, 0.0], [0.5, 3.0]], np.float32)


@pytest.mark.parametrize(
    ("name", "row_0", "row_2"),
    [
        ("f32", ([0, 0, 0x80, 0x3F], [0, 0, 0, 0xC0]), ([0, 0, 0, 0x3F], [0, 0, 0x40, 0x40])),
        ("f16", (ONE_F16, [0, 0xC0]), ([0, 0x38], [0, 0x42])),
        ("bf16", ([0x80, 0x3F], [0, 0xC0]), ([0, 0x3F], [0x40, 0x40])),
    ],
)
def test_golden_float_values_lie_row_beside_row(name, row_0, row_2):
    expected = floats(row_0, row_2, len(row_0[0]))
    np.testing.assert_array_equal(codec(name).quantize(FLOAT_WEIGHTS), expected)


def test_golden_q8_0_groups_of_four_lie_row_beside_row():
    # Row 0 counts 0..30 and ends in 127, so its scale is 1; row 1 is the same backwards.
    row = np.array([*range(31), 127], np.float32)
    tile = np.full(544, 128, np.uint8)
    for k, value in enumerate(row.astype(int)):
        group, j = divmod(k, 4)
        tile[64 * group + j] = 128 + value
        tile[64 * (7 - group) + 4 + 3 - j] = 128 + value
    tile[512:] = [*ONE_F16, *ONE_F16, *[0] * 28]
    assert tile[:8].tolist() == [128, 129, 130, 131, 255, 158, 157, 156]
    np.testing.assert_array_equal(codec("q8_0").quantize(np.stack([row, row[::-1]])), tile)


def test_golden_q4_0_high_nibbles_hold_the_second_half():
    # -8 is the largest magnitude, so the scale is 1; codes 0..15, then 15..0.
    row = np.array([*range(-8, 8), *range(7, -9, -1)], np.float32)
    tile = np.full(288, 0x88, np.uint8)
    for g in range(4):
        for j in range(4):
            code = 4 * g + j
            tile[64 * g + j] = code | (15 - code) << 4
    # Zero blocks have scale -0, as ggml's.
    tile[256:] = [*ONE_F16, *[0x00, 0x80] * 15]
    assert tile[:4].tolist() == [0xF0, 0xE1, 0xD2, 0xC3]
    np.testing.assert_array_equal(codec("q4_0").quantize(row[None]), tile)


def test_golden_q4_block_codes_precede_the_row_factors():
    # Two blocks of row 1: scale 255/256 and minimum 255/32, then scale 1/2 and minimum 1.
    # So d = 1/256, m = 1/32 and every code is exact.
    codes = np.array([*range(16), *range(15, -1, -1)])
    row = np.concatenate([codes * 255 / 256 - 255 / 32, codes / 2 - 1])
    tile = np.zeros(2 * 288 + 128, np.uint8)
    for block, (sc, mc) in enumerate([(255, 255), (128, 32)]):
        for g in range(4):
            for j in range(4):
                code = 4 * g + j
                tile[288 * block + 64 * g + 4 + j] = code | (15 - code) << 4
        tile[288 * block + 256 + 1] = sc
        tile[288 * block + 272 + 1] = mc
    tile[576 + 4 : 576 + 8] = [0, 0, 0x80, 0x3B]  # 1/256
    tile[640 + 4 : 640 + 8] = [0, 0, 0x00, 0x3D]  # 1/32
    w = np.stack([np.zeros(64), row]).astype(np.float32)
    np.testing.assert_array_equal(codec("q4").quantize(w), tile)
    np.testing.assert_array_equal(codec("q4").dequantize(tile, 2, 64), w)


def test_golden_q5_high_bits_lie_in_a_plane_and_high_minimums_share_bytes():
    # Rows 1 and 9 of scales and minimums (63, 63), then (32, 22) and (16, 41), in units of
    # d = 1/64 and m = 1/4.
    codes = np.arange(32)
    w = np.zeros((10, 64), np.float32)
    w[[1, 9], :32] = codes * 63 / 64 - 63 / 4
    w[1, 32:] = codes[::-1] / 2 - 22 / 4
    w[9, 32:] = codes / 4 - 41 / 4
    tile = np.zeros(2 * 344 + 64, np.uint8)
    for block, row, backwards in ((0, 1, 0), (0, 9, 0), (1, 1, 1), (1, 9, 0)):
        for j in range(4):
            for g in range(4):
                low = 4 * g + j
                byte = 15 - low | (15 - low) << 4 if backwards else low | low << 4
                tile[344 * block + 64 * g + 4 * row + j] = byte
            # Codes from 16 on are in the upper four of eight groups, or the lower.
            tile[344 * block + 256 + 4 * row + j] = 0x0F if backwards else 0xF0
    tile[[320 + 1, 320 + 9]] = 63 | 3 << 6
    tile[336 + 1] = 15 | 15 << 4
    tile[[664 + 1, 664 + 9]] = 32 | (22 & 3) << 6, 16 | (41 & 3) << 6
    tile[680 + 1] = 22 >> 2 | (41 >> 2) << 4
    for row in (1, 9):
        tile[688 + 2 * row : 690 + 2 * row] = [0x80, 0x3C]  # 1/64
        tile[720 + 2 * row : 722 + 2 * row] = [0x80, 0x3E]  # 1/4
    np.testing.assert_array_equal(codec("q5").quantize(w), tile)
    np.testing.assert_array_equal(codec("q5").dequantize(tile, 10, 64), w)


def test_golden_q6_three_bytes_hold_four_codes():
    # One block of row 1: scale 255/256 and minimum 255/8, so d = 1/256 and m = 1/8.
    codes = np.arange(32) * 2 + np.arange(32) // 16
    row = codes * 255 / 256 - 255 / 8
    tile = np.zeros(416 + 128, np.uint8)
    for half in range(2):
        for i in range(3):
            for j in range(4):
                low, fourth = codes[16 * half + 4 * i + j], codes[16 * half + 12 + j]
                tile[64 * (3 * half + i) + 4 + j] = low | (fourth >> 2 * i & 3) << 6
    tile[384 + 1] = tile[400 + 1] = 255
    tile[416 + 4 : 416 + 8] = [0, 0, 0x80, 0x3B]  # 1/256
    tile[480 + 4 : 480 + 8] = [0, 0, 0, 0x3E]  # 1/8
    # Codes 0, 8, 16 and 24; 24 is 0b011000.
    assert tile[[4, 68, 132]].tolist() == [0, 8 | 0b10 << 6, 16 | 0b01 << 6]
    w = np.stack([np.zeros(32), row]).astype(np.float32)
    np.testing.assert_array_equal(codec("q6").quantize(w), tile)
    np.testing.assert_array_equal(codec("q6").dequantize(tile, 2, 32), w)
