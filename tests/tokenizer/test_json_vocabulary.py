from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizer_repos import bpe_document, decoder, entry, prefixing_document, surrounding, write
from tokenizer_texts import TEXTS

from converter.tokenizer_files import tokenizer_from_path
from qllama.errors import TokenizerError
from qllama.tokenizer import load_tokenizer

ROWS = 1000
BPE = bpe_document()
N_BPE = max(BPE["model"]["vocab"].values()) + 1


def load(path, **files):
    return load_tokenizer(*tokenizer_from_path(write(path, **files), ROWS, {}))


def ids(tokenizer, text, *, add_special=True, parse_special=True):
    return tokenizer.encode(text, add_special=add_special, parse_special=parse_special)


def document(**changes):
    return {**BPE, **changes}


@pytest.mark.parametrize(
    ("prepend", "spelled"),
    [
        ("always", ["▁hi", "<s>", "▁hi"]),
        ("first", ["▁hi", "<s>", "hi"]),
        ("never", ["hi", "<s>", "hi"]),
    ],
)
def test_json_prefix_goes_where_the_file_puts_it(tmp_path, prepend, spelled):
    flags = {"legacy": prepend != "always", "add_prefix_space": prepend == "never"}
    tokenizer = load(
        tmp_path, tokenizer_json=prefixing_document(prepend), tokenizer_config_json=flags
    )
    found = ids(tokenizer, "hi<s>hi", add_special=False)
    assert [tokenizer.token_text(i) for i in found] == spelled
    for text in ("hi<s>hi", "hi</s> hi"):
        assert tokenizer.decode(ids(tokenizer, text, add_special=False)) == text
    assert tokenizer.decode(ids(tokenizer, "hi")) == "<s>hi"


def test_tokens_of_the_files_beside_it_are_added_with_their_flags(tmp_path):
    beside = decoder(
        entry(N_BPE, "<|user|>", rstrip=True),
        entry(N_BPE + 1, "<tag>", special=False, single_word=True),
    )
    tokenizer = load(
        tmp_path, tokenizer_json=BPE, tokenizer_config_json={"added_tokens_decoder": beside}
    )
    assert tokenizer.vocab_size == N_BPE + 2
    hello = BPE["model"]["vocab"]["hello"]
    assert ids(tokenizer, "<|user|> \n hello") == [N_BPE, hello]
    assert N_BPE not in ids(tokenizer, "<|user|>", parse_special=False)
    assert N_BPE + 1 in ids(tokenizer, "a <tag> b", parse_special=False)
    assert N_BPE + 1 not in ids(tokenizer, "a<tag>b")


def test_flags_of_the_files_beside_it_go_before_its_own(tmp_path):
    tool = BPE["model"]["vocab"]["<tool>"]
    beside = {"added_tokens_decoder": decoder(entry(tool, "<tool>"))}
    assert not load(tmp_path, tokenizer_json=BPE).is_special(tool)
    assert load(tmp_path, tokenizer_config_json=beside).is_special(tool)


def test_tokens_with_a_role_are_control_tokens(tmp_path):
    vocab = BPE["model"]["vocab"]
    roles = {"eos_token": "<tool>", "bos_token": "hello", "additional_special_tokens": ["12", "?!"]}
    tokenizer = load(tmp_path, tokenizer_json=BPE, tokenizer_config_json=roles)
    assert all(tokenizer.is_special(vocab[text]) for text in ("<tool>", "hello", "12"))
    assert vocab["<tool>"] not in ids(tokenizer, "<tool>", parse_special=False)


def test_complete_file_is_carried_byte_for_byte(tmp_path):
    # As Qwen2.5's: added tokens follow the vocabulary, and nothing else of them is told.
    vocab = {text: i for text, i in BPE["model"]["vocab"].items() if i < N_BPE - 3}
    blob = json.dumps(document(model={**BPE["model"], "vocab": vocab}), indent=1).encode()
    beside = decoder(*BPE["added_tokens"])
    write(
        tmp_path,
        tokenizer_json=blob,
        tokenizer_config_json={"eos_token": "<|im_end|>", "added_tokens_decoder": beside},
    )
    assert tokenizer_from_path(tmp_path, ROWS, {})[1] == blob


def test_ids_behind_a_hole_stay_and_the_hole_is_filled(tmp_path):
    # The library would give <far> the first free number.
    far = document(added_tokens=[*BPE["added_tokens"], entry(N_BPE + 3, "<far>")])
    tokenizer = load(tmp_path, tokenizer_json=far)
    assert ids(tokenizer, "<far>") == [N_BPE + 3]
    assert tokenizer.decode([N_BPE + 1]) == f"[UNUSED_{N_BPE + 1}]"
    assert tokenizer.vocab_size == N_BPE + 4


def test_ids_out_of_order_stay(tmp_path):
    # The library numbers them in the order of the file.
    swapped = [entry(N_BPE + 1, "<two>"), entry(N_BPE, "<one>")]
    tokenizer = load(tmp_path, tokenizer_json=document(added_tokens=swapped))
    assert ids(tokenizer, "<one><two>") == [N_BPE, N_BPE + 1]


@pytest.mark.parametrize("text", ["hello world", "12 🦙"])
def test_training_time_settings_of_the_file_are_off(tmp_path, text):
    trained = document(
        truncation={
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        padding={
            "strategy": {"Fixed": 32},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
        model={**BPE["model"], "dropout": 1.0},
    )
    found = ids(load(tmp_path / "trained", tokenizer_json=trained), text * 4)
    assert found == ids(load(tmp_path / "plain", tokenizer_json=BPE), text * 4)


@pytest.mark.parametrize(
    ("post", "expected"),
    [
        ({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}, (None, ())),
        ({"type": "Sequence", "processors": [surrounding(("<|bos|>", 271))]}, (271, ())),
        ({"type": "BertProcessing", "sep": ["x", 5], "cls": ["y", 6]}, (6, (5,))),
    ],
)
def test_every_post_processor_is_understood(tmp_path, post, expected):
    added = [token for token in BPE["added_tokens"] if token["content"] != "<|im_end|>"]
    config = load(tmp_path, tokenizer_json=document(post_processor=post, added_tokens=added)).config
    assert (config.bos_token_id, config.eos_token_ids) == expected


def _without_special_tokens():
    post = surrounding(("<|bos|>", 271))
    post["special_tokens"] = {}
    return post


TWICE = surrounding(("<|bos|>", 271))
TWICE["single"] = [TWICE["single"][0], *TWICE["single"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"post_processor": _without_special_tokens()}, "post_processor: expected one that puts"),
        ({"post_processor": TWICE}, r"at most one token before .*, found the ids \[271, 271\]"),
        ({"added_tokens": [entry(5, "<a>")]}, "'ą' and '<a>' are both token 5"),
        ({"added_tokens": [entry(900, "<a>"), entry(901, "<a>")]}, "is both token 900 and .* 901"),
    ],
)
def test_file_at_odds_with_itself_raises(tmp_path, changes, message):
    with pytest.raises(TokenizerError, match=message) as info:
        load(tmp_path, tokenizer_json=document(**changes))
    assert "\n" not in str(info.value)


def test_genuine_file_gives_the_ids_of_its_library(tmp_path):
    library = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    library.normalizer = tokenizers.normalizers.NFKC()
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    library.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Metaspace(prepend_scheme="first"),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    library.train_from_iterator(
        TEXTS, tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=special)
    )
    tokenizer = load(
        tmp_path,
        tokenizer_json=library.to_str().encode(),
        tokenizer_config_json={"bos_token": "<s>", "eos_token": "</s>"},
    )
    for text in TEXTS:
        for parse_special in (True, False):
            library.encode_special_tokens = not parse_special
            expected = library.encode(text, add_special_tokens=False).ids
            found = ids(tokenizer, text, add_special=False, parse_special=parse_special)
            assert found == expected


def test_list_vocabulary_cannot_have_a_token_behind_a_hole(tmp_path):
    unigram = {
        **prefixing_document("first"),
        "added_tokens": [entry(9, "<far>")],
        "post_processor": None,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁", -1.0]]},
    }
    with pytest.raises(TokenizerError, match=r"cannot have the id [0-9]+, as the tokens before"):
        load(tmp_path, tokenizer_json=json.loads(json.dumps(unigram)))
