from __future__ import annotations

import pytest
import tokenizers
from tiny_vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, bpe_fields, spm_fields
from tiny_vocab import token_id as find

from converter.vocabularies.gguf_fields import tokenizer_from_gguf
from qllama.errors import TokenizerError
from qllama.tokenizer import load_tokenizer


@pytest.mark.parametrize("make", [bpe_fields, spm_fields])
def test_every_token_keeps_its_id_and_spelling(make):
    extra = (
        ("<a>", CONTROL),
        ("plain", NORMAL),
        ("<b>", USER_DEFINED),
        ("", UNUSED),
        ("<pad>", UNUSED),
        ("<c>", UNKNOWN),
    )
    fields = make(extra=extra)
    tokens = list(fields["tokenizer.ggml.tokens"])
    tokens[tokens.index("")] = f"[EMPTY_{tokens.index('')}]"
    tokenizer = load_tokenizer(*tokenizer_from_gguf(fields))
    assert tokenizer.vocab_size == len(tokens)
    assert [tokenizer.token_text(i) for i in range(len(tokens))] == tokens
    special = {"<a>", "<c>", "<unk>", "<s>", "</s>"}
    assert {token for i, token in enumerate(tokens) if tokenizer.is_special(i)} == (
        special & set(tokens)
    )


def test_config_of_bpe_takes_what_the_file_says():
    fields = bpe_fields(
        bos_token_id=300, eos_token_id=1, unknown_token_id=2, padding_token_id=3, eot_token_id=5
    )
    fields |= {
        "tokenizer.ggml.bos_token_id": find(fields, "<|bos|>"),
        "tokenizer.ggml.eom_token_id": 4,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.chat_template": "template",
    }
    config, _ = tokenizer_from_gguf(fields)
    assert config.to_dict() == {
        "kind": "tokenizers",
        "bos_token_id": find(fields, "<|bos|>"),
        "eos_token_ids": (1, 5, 4, find(fields, "<|im_end|>")),
        "unk_token_id": 2,
        "pad_token_id": 3,
        "add_bos_token": True,
        "add_eos_token": True,
        "chat_template": "template",
        "prefix_at_start_only": False,
    }


def test_config_of_sentencepiece_has_llamacpp_defaults():
    config, _ = tokenizer_from_gguf(spm_fields(extra=()))
    assert config.to_dict() == {
        "kind": "sentencepiece",
        "bos_token_id": 1,
        "eos_token_ids": (2,),
        "unk_token_id": 0,
        "pad_token_id": None,
        "add_bos_token": True,
        "add_eos_token": False,
        "chat_template": None,
        "prefix_at_start_only": False,
    }


@pytest.mark.parametrize(
    ("pre", "adds"),
    [("llama-bpe", True), ("llama3", True), ("llama-v3", True)]
    + [(pre, False) for pre in ("gpt-2", "smollm", "qwen2", "default")],
)
def test_config_add_bos_default_goes_by_pre_tokenizer(pre, adds):
    with_bos = bpe_fields(pre=pre, bos_token_id=0)
    assert tokenizer_from_gguf(with_bos)[0].add_bos_token is adds
    assert tokenizer_from_gguf(with_bos | {"tokenizer.ggml.add_bos_token": not adds})[
        0
    ].add_bos_token is (not adds)
    assert tokenizer_from_gguf(bpe_fields(pre=pre))[0].add_bos_token is False


def test_config_end_of_turn_found_by_text_only_among_control_tokens():
    extra = (("<|eot_id|>", CONTROL), ("<|end|>", NORMAL), ("</s>", USER_DEFINED))
    fields = bpe_fields(extra=extra)
    assert tokenizer_from_gguf(fields)[0].eos_token_ids == (find(fields, "<|eot_id|>"),)


def test_user_defined_token_named_as_eos_is_special():
    fields = bpe_fields(extra=(("<|im_start|>", USER_DEFINED), ("<|im_end|>", USER_DEFINED)))
    eos = find(fields, "<|im_end|>")
    fields["tokenizer.ggml.eos_token_id"] = eos
    tokenizer = load_tokenizer(*tokenizer_from_gguf(fields))
    assert tokenizer.is_special(eos)
    assert not tokenizer.is_special(find(fields, "<|im_start|>"))
    assert eos not in tokenizer.encode("<|im_end|>", add_special=False, parse_special=False)


def test_padding_or_unknown_outside_vocabulary_is_left_out():
    config, _ = tokenizer_from_gguf(bpe_fields(padding_token_id=10**6, unknown_token_id=2**32 - 1))
    assert (config.pad_token_id, config.unk_token_id) == (None, None)


def _without(name, make=bpe_fields):
    fields = make()
    del fields[f"tokenizer.ggml.{name}"]
    return fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "tokenizer.ggml.model is missing"),
        (bpe_fields(model="bert"), "expected 'gpt2' .* or 'llama' .*, found 'bert'"),
        (bpe_fields(model=7), "tokenizer.ggml.model: expected str, found 7"),
        (_without("pre"), "tokenizer.ggml.pre is missing"),
        (
            bpe_fields(pre="klingon"),
            "tokenizer.ggml.pre: 'klingon' is not supported; known are default, gpt-2, "
            "llama-bpe, llama-v3, llama3, qwen2, smollm",
        ),
        (_without("tokens"), "tokenizer.ggml.tokens is missing"),
        (bpe_fields(tokens=[]), "tokenizer.ggml.tokens: expected a list of strings, not empty"),
        (bpe_fields(tokens=["a", 1]), "tokenizer.ggml.tokens: expected a list of strings"),
        (
            bpe_fields(tokens=["a", "b", "a"], token_type=[1, 1, 1]),
            "'a' is both token 0 and token 2",
        ),
        (bpe_fields(token_type=[1]), "token_type: expected .* entries, one a token, found 1 ent"),
        (
            bpe_fields(tokens=["a"], token_type=[9], merges=[]),
            "token_type: expected 1..6, found 9 for token 0",
        ),
        (_without("merges"), "tokenizer.ggml.merges is missing"),
        (bpe_fields(merges=["a b c d"]), "tokenizer.json: "),
        (bpe_fields(merges=["a nonsense"]), "tokenizer.json: .*out of vocabulary"),
        (bpe_fields(merges=[1]), "tokenizer.json: "),
        (bpe_fields(bos_token_id=10**6), "bos_token_id: expected 0..[0-9]+, found 1000000"),
        (bpe_fields(eos_token_id=-1), "eos_token_id: expected 0..[0-9]+, found -1"),
        (bpe_fields(eos_token_id=True), "eos_token_id: expected int, found True"),
        (bpe_fields(add_bos_token=1), "add_bos_token: expected bool, found 1"),
        (bpe_fields(add_bos_token=True), "add_bos_token is set, but no bos_token_id"),
        (_without("scores", spm_fields), "tokenizer.ggml.scores is missing"),
        (spm_fields(scores=[0.0]), "scores: expected [0-9]+ entries, found 1"),
        (
            spm_fields(tokens=["a"], token_type=[NORMAL], scores=[float("nan")]),
            "scores: expected finite float32 numbers",
        ),
        (
            spm_fields(tokens=["a"], token_type=[NORMAL], scores=["x"]),
            "scores: expected finite float32 numbers",
        ),
        (
            spm_fields(tokens=["<unk>", "<0x00>"], token_type=[UNKNOWN, BYTE], scores=[0.0, 0.0]),
            "not a SentencePiece model .*byte",
        ),
    ],
)
def test_malformed_fields_raise_one_line(fields, message):
    with pytest.raises(TokenizerError, match=message) as info:
        tokenizer_from_gguf(fields)
    assert "\n" not in str(info.value)


# By hand from each pattern.
SPLITS = {
    "gpt-2": "I|'|LLgo| we|'ll| buy| 12345| cafés|!?|  | ok|\r\n ",
    "smollm": "I|'|LLgo| we|'ll| buy| |1|2|3|4|5| cafés|!?|  | ok|\r\n ",
    "llama-bpe": "I|'LL|go| we|'ll| buy| |123|45| cafés|!?|  | ok|\r\n| ",
    "qwen2": "I|'LL|go| we|'ll| buy| |1|2|3|4|5| cafés|!?|  | ok|\r\n| ",
    # Punctuation first, so the apostrophe is alone; digits three at a time at last.
    "default": "I|'|LLgo| we|'|ll| buy| |123|45| cafés|!?|  | ok|\r\n ",
}


@pytest.mark.parametrize("pre", SPLITS)
def test_pre_tokenizer_cuts_as_its_pattern_says(pre):
    text = "I'LLgo we'll buy 12345 cafés!?   ok\r\n "
    _, blob = tokenizer_from_gguf(bpe_fields(pre=pre))
    cut = tokenizers.Tokenizer.from_buffer(blob).pre_tokenizer.pre_tokenize_str(text)
    assert "|".join(text[start:end] for _, (start, end) in cut) == SPLITS[pre]
