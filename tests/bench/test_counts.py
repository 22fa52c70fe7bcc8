"""What a test reads and computes, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from qllama.bench import plan
from qllama.bench.counts import ModelCounts
from qllama.format import QlmFile

# The tiny model: 2 layers of q 256 x 256, k and v 128 x 256, o 256 x 256, gate and up
# 512 x 256, down 256 x 512; 4 heads of 64, 2 of them for keys; a vocabulary of 270.
LAYERS = 2 * (2 * 65536 + 2 * 32768 + 3 * 131072)
HEAD = 270 * 256
# Stored: 34 bytes for 32 weights, rows padded to a multiple of 16; norms in float32.
LAYER_BYTES = LAYERS * 34 // 32 + 2 * 2 * 256 * 4
HEAD_BYTES = 272 * 256 * 34 // 32
FINAL_NORM_BYTES = 256 * 4
STEP_BYTES = LAYER_BYTES + HEAD_BYTES + FINAL_NORM_BYTES


@pytest.fixture
def counts(tiny_models):
    def of(name="tied", kv_type="f16"):
        with QlmFile.open(tiny_models[name]) as file:
            return ModelCounts.of(file, kv_type)

    return of


def test_counts_tied_embedding_is_held_once_and_read_once(counts):
    tied = counts()
    assert tied.n_bytes == tied.step_bytes == STEP_BYTES
    assert tied.n_params == LAYERS + HEAD + 5 * 256


def test_counts_untied_embedding_is_held_but_not_read(counts):
    untied = counts("untied")
    assert untied.n_bytes == STEP_BYTES + HEAD_BYTES
    assert untied.step_bytes == STEP_BYTES
    assert untied.n_params == LAYERS + 2 * HEAD + 5 * 256


@pytest.mark.parametrize(("kv_type", "head_bytes"), [("f16", 128), ("q8", 68)])
def test_counts_decode_reads_weights_once_a_step_and_all_earlier_positions(
    counts, kv_type, head_bytes
):
    position = 2 * 2 * 2 * head_bytes  # layers, keys and values, heads
    # Tokens at positions 10, 11 and 12 see 11, 12 and 13.
    assert counts(kv_type=kv_type).decode_bytes(plan.Test(0, 3, depth=10)) == (
        3 * STEP_BYTES + 36 * position
    )


def test_counts_sequences_share_the_weights_but_not_the_positions(counts):
    made = counts()
    one, many = made.decode_bytes(plan.Test(0, 3)), made.decode_bytes(plan.Test(0, 3, n_parallel=8))
    assert one == 3 * STEP_BYTES + (1 + 2 + 3) * 1024
    assert many == 3 * STEP_BYTES + 8 * (1 + 2 + 3) * 1024


def test_counts_sliding_window_bounds_what_a_token_sees(counts):
    made = dataclasses.replace(counts(), sliding_window=4)
    # Positions 2 to 6 see 3, 4, 4, 4 and 4.
    assert made.decode_bytes(plan.Test(0, 5, depth=2)) == 5 * STEP_BYTES + 19 * 1024


def test_counts_prompt_wants_the_logits_of_one_token(counts):
    # 4 operations for each of 256 query values, layer and position seen: 6 + 7 + 8.
    assert counts().operations(plan.Test(3, 0, depth=5)) == (
        3 * 2 * LAYERS + 2 * HEAD + 21 * 4 * 2 * 256
    )


def test_counts_generated_tokens_all_want_logits(counts):
    made = counts()
    attention = 4 * 2 * 256
    assert made.operations(plan.Test(0, 2)) == 2 * 2 * (LAYERS + HEAD) + 3 * attention
    assert made.operations(plan.Test(0, 2, n_parallel=4)) == 4 * made.operations(plan.Test(0, 2))
    assert made.operations(plan.Test(2, 2)) == 4 * 2 * LAYERS + 3 * 2 * HEAD + 10 * attention
