"""Adapters that add tokens: their rows, and the tokenizer that knows them."""

from __future__ import annotations

import json
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
from tiny_hf import config_of, write_json, write_repository, write_tokenizer

from converter.lora import with_adapter
from converter.sources.options import SourceOptions
from converter.sources.registry import open_source
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


def write_chat_tokenizer(directory):
    """Write the tokenizer with one more token, and a chat template."""
    write_tokenizer(directory)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = json.loads((directory / "tokenizer.json").read_text())
    token = {"id": TOKENS, "content": "<|new|>", "special": True}
    document["added_tokens"].append(token | flags)
    write_json(directory / "tokenizer.json", document)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    write_json(directory / "tokenizer_config.json", {**settings, "chat_template": "new"})


def narrow(directory, vocab_size=TOKENS + 7):
    """A base model that the adapters of `lora_sample` fit."""
    narrow = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": vocab_size}
    return write_repository(directory, config_of(**narrow))


def test_lora_that_trained_tokens_of_spare_rows_says_whose_tokenizer_is_used(tmp_path, capsys):
    path = narrow(tmp_path / "base")
    directory = write_adapter(tmp_path / "a")
    base = open_source(path)
    merged = with_adapter(base, directory, 1.0)
    write_tokenizer(directory)
    capsys.readouterr()
    assert merged.tokenizer == base.tokenizer
    assert capsys.readouterr().err == ""
    write_chat_tokenizer(directory)
    assert with_adapter(base, directory, 1.0).tokenizer == base.tokenizer
    assert (
        f"{directory}: its tokenizer has tokens of its own (<|new|>) and another chat template; "
        f"the base model's is used, --tokenizer {directory} takes this one\n"
    ) in capsys.readouterr().err
    chosen = open_source(path, SourceOptions(tokenizer=directory))
    assert with_adapter(chosen, directory, 1.0).tokenizer[0].chat_template == "new"
    assert "its tokenizer" not in capsys.readouterr().err


@pytest.mark.parametrize("base_has_one", [True, False])
def test_lora_that_adds_tokens_to_rows_takes_the_tokenizer_that_the_user_names(
    tmp_path, base_has_one
):
    path = narrow(tmp_path / "base", TOKENS)
    if not base_has_one:
        (path / "tokenizer.json").unlink()
    directory, _ = grown_adapter(tmp_path / "a")
    write_chat_tokenizer(directory)
    assert with_adapter(open_source(path), directory, 1.0).tokenizer[0].chat_template == "new"
    named = tmp_path / "named"
    named.mkdir()
    write_tokenizer(named)
    for tokenizer, template in ((directory, "new"), (named, None)):
        source = open_source(path, SourceOptions(tokenizer=tokenizer))
        merged = with_adapter(source, directory, 1.0)
        assert merged.tokenizer[0].chat_template == template
