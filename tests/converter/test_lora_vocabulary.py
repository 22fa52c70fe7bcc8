"""Adapters that add tokens: their rows, and the tokenizer that knows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lora_sample import (
    CONFIG,
    TARGETS,
    base_model,
    low_rank,
    projections,
    random_array,
    values,
    write_adapter,
)
from tiny_hf import write_tokenizer

from converter.lora import with_adapter
from qllama.errors import TokenizerError
from qllama.tensors import EMBEDDING, HEAD

# As many as `write_tokenizer` makes.
TOKENS = 263


def grown_adapter(directory):
    arrays = {
        **low_rank(projections(*TARGETS)),
        "base_model.model.model.embed_tokens.weight": random_array(TOKENS + 8, 32),
        "base_model.model.lm_head.weight": random_array(TOKENS + 8, 32, seed=6),
    }
    fields = {"modules_to_save": ["embed_tokens", "lm_head"]}
    return write_adapter(directory, arrays, **fields), arrays


def test_lora_that_adds_tokens_brings_rows_and_tokenizer(tmp_path):
    source = base_model(replace(CONFIG, vocab_size=TOKENS - 1))
    directory, arrays = grown_adapter(tmp_path / "a")
    write_tokenizer(directory)
    merged = with_adapter(source, directory, 1.0)
    assert merged.config == replace(source.config, vocab_size=TOKENS + 8)
    for name in (EMBEDDING, HEAD):
        np.testing.assert_array_equal(values(merged)[name], arrays[f"base_model.model.{name}"])
    record, blob = merged.tokenizer
    assert (record.bos_token_id, record.eos_token_ids[0]) == (1, 2)
    assert b"hello" in blob


def test_lora_that_adds_tokens_without_a_tokenizer_is_refused(tmp_path):
    directory, _ = grown_adapter(tmp_path / "a")
    merged = with_adapter(base_model(), directory, 1.0)
    with pytest.raises(TokenizerError, match=rf"{directory}.*adds tokens to the 40 of the base"):
        _ = merged.tokenizer
