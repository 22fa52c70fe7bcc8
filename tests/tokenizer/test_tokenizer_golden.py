"""SmolLM2's real vocabulary: ids pinned from llama.cpp, and a plain Python oracle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import pytest
from bpe_reference import merge, smollm_pieces
from tokenizer_texts import TEXTS

from converter.vocabularies.gguf_fields import tokenizer_from_gguf
from qllama.tokenizer import ChatTemplate, StreamingDetokenizer, load_tokenizer

GOLDEN = json.loads(Path(__file__).with_name("golden_smollm2.json").read_text(encoding="utf-8"))
SHA256 = GOLDEN["gguf_sha256"]


@pytest.fixture(scope="module")
def fields(smollm2_gguf):
    if hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest() != SHA256:
        pytest.skip("the golden ids are of another GGUF file")
    reader = gguf.GGUFReader(smollm2_gguf)
    return {
        key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer")
    }


@pytest.fixture(scope="module")
def tokenizer(fields):
    return load_tokenizer(*tokenizer_from_gguf(fields))


def test_golden_has_every_text():
    assert [case["text"] for case in GOLDEN["cases"]] == TEXTS


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: ascii(case["text"][:20]))
def test_smollm2_ids_equal_llamacpp(tokenizer, case):
    for parse_special, ids in ((True, case["parsed"]), (False, case["plain"])):
        found = tokenizer.encode(case["text"], add_special=True, parse_special=parse_special)
        assert found == ids
        assert tokenizer.decode(ids) == case["text"]
        stream = StreamingDetokenizer(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.flush() == case["text"]


def test_smollm2_ids_equal_plain_python_bpe(tokenizer, fields):
    ids = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    pairs = (tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"])
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    for text in TEXTS:
        parts = [part for piece in smollm_pieces(text) for part in merge(piece, ranks)]
        expected = [ids[part] for part in parts]
        assert tokenizer.encode(text, add_special=False, parse_special=False) == expected


def test_smollm2_byte_outside_the_vocabulary_is_dropped_as_elsewhere(tokenizer):
    # 21 bytes have no token; llama.cpp and transformers drop them likewise.
    assert tokenizer.encode("a\x04b", add_special=False, parse_special=False) == [81, 82]


def test_smollm2_config_is_the_files(tokenizer):
    config = tokenizer.config
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (1, (2, 0), 2)
    assert (config.add_bos_token, config.add_eos_token) == (False, False)
    assert tokenizer.vocab_size == 49152


def test_smollm2_chat_prompt_is_encoded_with_its_control_tokens(tokenizer):
    prompt = ChatTemplate.of(tokenizer).render([{"role": "user", "content": "Hi"}])
    ids = tokenizer.encode(prompt, add_special=True, parse_special=True)
    assert [i for i in ids if tokenizer.is_special(i)] == [1, 2, 1, 2, 1]
    assert tokenizer.decode(ids) == prompt
