from __future__ import annotations

import json

import pytest
from tiny_vocab import CONTROL, bpe_fields, spm_fields
from tokenizer_repos import (
    TEMPLATE,
    bpe_document,
    decoder,
    entry,
    prefixing_document,
    spm_model,
    surrounding,
    tiktoken_file,
    write,
)

from converter.tokenizer_files import tokenizer_from_path
from qllama.errors import QllamaError, TokenizerError
from qllama.tokenizer import ChatTemplate, load_tokenizer

ROWS = 1000
EXTRA = (("<|bos|>", CONTROL), ("<|eot_id|>", CONTROL), ("<|pad|>", CONTROL))
BPE = bpe_document(extra=EXTRA)
N_BPE = len(bpe_fields(extra=EXTRA)["tokenizer.ggml.tokens"])
BOS, EOT, PAD = range(N_BPE - 3, N_BPE)
NAMED = {"bos_token": "<|bos|>", "eos_token": "<|eot_id|>", "pad_token": "<|pad|>"}


def load(path, rows=ROWS, **declared):
    return load_tokenizer(*tokenizer_from_path(path, rows, declared))


def ids(tokenizer, text, *, add_special=True):
    return tokenizer.encode(text, add_special=add_special, parse_special=True)


def test_json_directory_gives_the_file_and_what_stands_beside_it(tmp_path):
    blob = json.dumps(BPE).encode()
    write(
        tmp_path,
        tokenizer_json=blob,
        tokenizer_config_json={**NAMED, "add_bos_token": True, "chat_template": TEMPLATE},
        generation_config_json={"eos_token_id": [PAD, EOT]},
    )
    config, found = tokenizer_from_path(tmp_path, ROWS, {"eos_token_id": 5, "pad_token_id": 7})
    assert found == blob
    assert config.to_dict() == {
        "kind": "tokenizers",
        "bos_token_id": BOS,
        "eos_token_ids": (EOT, PAD, 5),
        "unk_token_id": None,
        "pad_token_id": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
        "chat_template": TEMPLATE,
        "prefix_at_start_only": False,
    }
    prompt = ChatTemplate.of(load_tokenizer(config, found)).render([{"content": "hi"}])
    assert prompt == "<|bos|>hi<|eot_id|>"


def test_json_goes_before_the_sentencepiece_model_beside_it(tmp_path):
    write(tmp_path, tokenizer_json=prefixing_document(), tokenizer_model=spm_model())
    assert tokenizer_from_path(tmp_path, ROWS, {})[0].kind == "tokenizers"
    chosen, _ = tokenizer_from_path(tmp_path / "tokenizer.model", ROWS, {})
    assert chosen.kind == "sentencepiece"


def test_a_file_is_known_by_its_bytes_and_not_its_name(tmp_path):
    for name, content in {
        "a.bin": json.dumps(prefixing_document()).encode(),
        "b.bin": spm_model(),
        "c.bin": tiktoken_file(),
    }.items():
        (tmp_path / name).write_bytes(content)
    rows = len(tiktoken_file().splitlines()) + 256
    kinds = [tokenizer_from_path(tmp_path / f"{n}.bin", rows, {})[0].kind for n in "abc"]
    assert kinds == ["tokenizers", "sentencepiece", "tokenizers"]


@pytest.mark.parametrize(
    ("post", "flags", "expected"),
    [
        (None, {}, (False, False)),
        (surrounding(("<|bos|>", BOS)), {}, (True, False)),
        (surrounding(("<|bos|>", BOS), ("<|eot_id|>", EOT)), {}, (True, True)),
        (surrounding(("<|bos|>", BOS)), {"add_bos_token": False}, (False, False)),
        (None, {"add_bos_token": True, "add_eos_token": True}, (True, True)),
        (None, {"add_bos_token": True, "bos_token": None}, (False, False)),
    ],
)
def test_json_adds_what_its_flags_or_else_its_post_processor_say(tmp_path, post, flags, expected):
    document = {**BPE, "post_processor": post}
    write(tmp_path, tokenizer_json=document, tokenizer_config_json={**NAMED, **flags})
    tokenizer = load(tmp_path)
    found = ids(tokenizer, "hello")
    assert (found[0] == BOS, found[-1] == EOT) == expected
    assert (tokenizer.config.add_bos_token, tokenizer.config.add_eos_token) == expected


@pytest.mark.parametrize(("said", "expected"), [({}, True), ({"add_bos_token": False}, False)])
def test_json_of_llama_3_adds_bos_where_its_post_processor_forgot_it(tmp_path, said, expected):
    document = bpe_document(extra=(("<|begin_of_text|>", CONTROL),))
    write(
        tmp_path,
        tokenizer_json=document,
        tokenizer_config_json={"bos_token": "<|begin_of_text|>", **said},
    )
    assert load(tmp_path).config.add_bos_token is expected


def test_json_bos_and_eos_of_the_post_processor_where_nothing_names_them(tmp_path):
    document = {**BPE, "post_processor": surrounding(("<|bos|>", BOS), ("<|pad|>", PAD))}
    config = load(write(tmp_path, tokenizer_json=document)).config
    assert (config.bos_token_id, config.eos_token_ids) == (BOS, (PAD, EOT))


def test_bos_of_the_config_only_where_the_tokenizer_does_not_say_null(tmp_path):
    write(tmp_path, tokenizer_json=BPE)
    assert load(tmp_path, bos_token_id=BOS).config.bos_token_id == BOS
    # Qwen2.5 says so: its config.json names a bos_token_id, its tokenizer has none.
    write(tmp_path, tokenizer_config_json={"bos_token": None})
    assert load(tmp_path, bos_token_id=BOS).config.bos_token_id is None


def test_end_of_turn_tokens_found_by_text_only_among_control_tokens(tmp_path):
    plain = entry(EOT, "<|eot_id|>", special=False)
    document = {**BPE, "added_tokens": [entry(BOS, "<|bos|>"), plain]}
    assert load(write(tmp_path, tokenizer_json=BPE)).config.eos_token_ids == (EOT,)
    assert load(write(tmp_path, tokenizer_json=document)).config.eos_token_ids == ()


def test_sentencepiece_alone_has_the_ids_of_the_model(tmp_path):
    blob = spm_model(extra=())
    config, found = tokenizer_from_path(write(tmp_path, tokenizer_model=blob), ROWS, {})
    assert found == blob
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


def test_sentencepiece_ids_go_before_wrong_ones_of_the_config(tmp_path):
    # The first conversions of Llama 1: empty names, and ids of fairseq in config.json.
    names = {"bos_token": "", "eos_token": "", "unk_token": ""}
    write(tmp_path, tokenizer_model=spm_model(extra=()), tokenizer_config_json=names)
    config = load(tmp_path, bos_token_id=0, eos_token_id=1, pad_token_id=-1).config
    assert (config.bos_token_id, config.eos_token_ids[0], config.pad_token_id) == (1, 2, None)


def test_meta_directory_finds_the_tokenizer_above_it(tmp_path):
    write(tmp_path, tokenizer_model=spm_model())
    model = write(tmp_path / "7B", params_json={})
    assert load(model).config.kind == "sentencepiece"
    (model / "params.json").unlink()
    with pytest.raises(TokenizerError, match=r"7B: expected tokenizer\.json or tokenizer\.model"):
        load(model)


@pytest.mark.parametrize("rows", [N_BPE, N_BPE + 100])
def test_rows_beyond_the_tokens_are_padding(tmp_path, rows):
    assert load(write(tmp_path, tokenizer_json=BPE), rows).vocab_size == N_BPE


@pytest.mark.parametrize("beside", [{}, {"tokenizer_config_json": {"pad_token": "<|bos|>"}}])
def test_tokens_beyond_the_rows_raise(tmp_path, beside):
    write(tmp_path, tokenizer_json=BPE, **beside)
    with pytest.raises(TokenizerError, match=rf"has {N_BPE - 1} rows.*1 tokens.*'<\|pad\|>'"):
        load(tmp_path, N_BPE - 1)


def test_json_padding_token_beyond_the_rows_is_left_out(tmp_path):
    write(tmp_path, tokenizer_json=BPE, tokenizer_config_json=NAMED)
    tokenizer = load(tmp_path, N_BPE - 1)
    assert (tokenizer.vocab_size, tokenizer.config.pad_token_id) == (N_BPE - 1, None)
    assert max(ids(tokenizer, "<|pad|>")) < N_BPE - 1


def test_sentencepiece_padding_token_beyond_the_rows_is_left_out(tmp_path):
    n_pieces = len(spm_fields()["tokenizer.ggml.tokens"])
    write(
        tmp_path,
        tokenizer_model=spm_model(),
        added_tokens_json={"[PAD]": n_pieces},
        special_tokens_map_json={"pad_token": "[PAD]"},
    )
    assert load(tmp_path, n_pieces).vocab_size == n_pieces
    padded = load(tmp_path, n_pieces + 1)
    assert (padded.vocab_size, padded.config.pad_token_id) == (n_pieces + 1, n_pieces)


def _lines(*changes):
    lines = tiktoken_file().split(b"\n")
    for number, line in changes:
        lines[number] = line
    return b"\n".join(lines)


def test_missing_path_raises_one_line_that_names_it(tmp_path):
    with pytest.raises(QllamaError, match=r"nowhere: no such file or directory"):
        load(tmp_path / "nowhere")


MALFORMED = [
    ({}, r"expected tokenizer\.json or tokenizer\.model, found neither"),
    ({"tekken_json": {}}, r"found only tekken\.json; save a tokenizer\.json"),
    ({"tokenizer_model": b""}, r"tokenizer\.model: expected a SentencePiece model"),
    ({"tokenizer_model": spm_model()[:-9]}, "expected a SentencePiece model"),
    ({"tokenizer_model": b"version https://git-lfs.github.com/spec/v1\n"}, "Git LFS pointer"),
    ({"tokenizer_json": b"{"}, r"tokenizer\.json: expected JSON"),
    ({"tokenizer_json": {"config": {}, "vocab": []}}, r"found the keys \['config', 'vocab'\]"),
    ({"tokenizer_json": {"model": {}}}, "tokenizers library .* cannot read it"),
    # Over which the library panics.
    (
        {"tokenizer_json": {**BPE, "model": {**BPE["model"], "continuing_subword_prefix": "####"}}},
        r"tokenizers library .* cannot read it: range end index .*; download the file again",
    ),
    ({"tokenizer_json": {**BPE, "decoder": None}}, "expected a decoder of kind ByteLevel"),
    (
        {"tokenizer_json": BPE, "tokenizer_config_json": b"[]"},
        r"tokenizer_config\.json: expected a JSON object, found \[\]",
    ),
    (
        {"tokenizer_json": BPE, "tokenizer_config_json": {"eos_token": "<nope>"}},
        r"eos_token: expected a token of tokenizer\.json, found '<nope>'",
    ),
    (
        {"tokenizer_json": BPE, "generation_config_json": {"eos_token_id": [1, 10**6]}},
        r"generation_config\.json: eos_token_id: expected .*, found 1000000",
    ),
    (
        {"tokenizer_json": {**BPE, "post_processor": surrounding(("<|bos|>", BOS))}}
        | {"tokenizer_config_json": {"eos_token": 7}},
        "eos_token: expected a token, found 7",
    ),
    (
        {"tokenizer_json": BPE}
        | {"tokenizer_config_json": {"added_tokens_decoder": decoder(entry(5, "<x>"))}},
        "token 5 is 'ą', but the files beside it add '<x>' as token 5",
    ),
    (
        {"tokenizer_model": spm_model()}
        | {"tokenizer_config_json": {"added_tokens_decoder": decoder(entry(3, "<s>"))}},
        "'<s>' is token 1, but an added token 3 is spelled alike",
    ),
    (
        {"tokenizer_model": spm_model()}
        | {
            "tokenizer_config_json": {"added_tokens_decoder": decoder(entry(900, "x", rstrip=True))}
        },
        "'x' takes white space along",
    ),
    ({"tokenizer_model": tiktoken_file()}, "expected the tiktoken vocabulary of Llama 3 with 744"),
    ({"tokenizer_model": _lines((3, b"AAA= x"))}, "line 4: expected base64 and a rank"),
    ({"tokenizer_model": _lines((3, b"AAA 3"))}, "line 4: expected base64 and a rank"),
    ({"tokenizer_model": _lines((3, b"AAA= 4"))}, "line 4: expected a new token of rank 3"),
    ({"tokenizer_model": _lines((3, b"AA== 3"))}, "line 4: expected a new token of rank 3"),
    ({"tokenizer_model": _lines((3, b"aGVsbG8h 3"))}, "every byte to be a token, but 0x03 is not"),
]


@pytest.mark.parametrize(("files", "message"), MALFORMED)
def test_malformed_files_raise_one_line_that_names_them(tmp_path, files, message):
    write(tmp_path, **files)
    with pytest.raises(QllamaError, match=message) as info:
        tokenizer_from_path(tmp_path, ROWS, {})
    assert "\n" not in str(info.value)
    assert str(tmp_path) in str(info.value)
