from __future__ import annotations

import pytest

from qllama.errors import UnsupportedModelError
from qllama.quant import QUANT_TYPES, matrix_n_bytes, padded_shape, quant_type, vector_n_bytes


@pytest.mark.parametrize(
    ("shape", "padded"),
    [((1, 1), (16, 32)), ((16, 32), (16, 32)), ((17, 33), (32, 64)), ((49152, 576), (49152, 576))],
)
def test_padded_shape_rounds_up_to_whole_tiles(shape, padded):
    assert padded_shape(*shape) == padded


# 17 rows are 2 tiles; 33 columns are 2 blocks. By hand from the table of docs/format.md.
@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [
        ("f32", 2 * 2 * 2048),
        ("f16", 2 * 2 * 1024),
        ("bf16", 2 * 2 * 1024),
        ("q8_0", 2 * 2 * 544),
        ("q4_0", 2 * 2 * 288),
        ("q4", 2 * (2 * 288 + 128)),
    ],
)
def test_matrix_n_bytes_counts_padding_and_tail(name, n_bytes):
    assert matrix_n_bytes(name, 17, 33) == n_bytes


@pytest.mark.parametrize("name", QUANT_TYPES)
def test_quant_type_bits_per_weight_is_what_a_wide_matrix_takes(name):
    k = 1 << 16
    bits = matrix_n_bytes(name, 16, k) * 8 / (16 * k)
    assert bits == pytest.approx(QUANT_TYPES[name].bits_per_weight, abs=0.001)


@pytest.mark.parametrize(("name", "n_bytes"), [("f32", 20), ("f16", 10), ("bf16", 10)])
def test_vector_n_bytes_is_unpadded(name, n_bytes):
    assert vector_n_bytes(name, 5) == n_bytes


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4", "q5", "q6"])
def test_vector_n_bytes_of_block_type_is_refused(name):
    with pytest.raises(UnsupportedModelError, match=f"f32, f16 or bf16, found '{name}'"):
        vector_n_bytes(name, 32)


def test_quant_type_unknown_name_lists_the_known_ones():
    with pytest.raises(
        UnsupportedModelError, match=r"f32, f16, bf16, q8_0, q4_0, q4, q5, q6, found 'q3'"
    ):
        quant_type("q3")
