from __future__ import annotations

import io

import pytest
import sentencepiece
from tiny_vocab import spm_fields, token_id
from tokenizer_repos import decoder, entry, spm_model, write
from tokenizer_texts import TEXTS

from converter.tokenizer_files import tokenizer_from_path
from qllama.tokenizer import load_tokenizer
from qllama.tokenizer.sentencepiece_proto import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    read_pieces,
    with_dummy_prefix,
    with_pieces,
)

ROWS = 1000
N = 560  # tokens of a trained model


def load(path):
    return load_tokenizer(*tokenizer_from_path(path, ROWS, {}))


def ids(tokenizer, text, *, add_special=True):
    return tokenizer.encode(text, add_special=add_special, parse_special=True)


def test_sentencepiece_tokens_of_every_kind_are_added(tmp_path):
    fields = spm_fields()
    n_pieces = len(fields["tokenizer.ggml.tokens"])
    write(
        tmp_path,
        tokenizer_model=spm_model(),
        tokenizer_config_json={
            "added_tokens_decoder": decoder(
                entry(1, "<s>"),
                entry(token_id(fields, "<tool>"), "<role>"),
                entry(n_pieces, "<|start|>"),
                entry(n_pieces + 2, "  \n", special=False),
            ),
            "eos_token": "<|start|>",
        },
    )
    tokenizer = load(tmp_path)
    assert tokenizer.vocab_size == n_pieces + 3
    role = token_id(fields, "<tool>")
    assert ids(tokenizer, "<role>  \n<|start|>") == [1, role, n_pieces + 2, n_pieces]
    assert [tokenizer.is_special(n_pieces + i) for i in (0, 1, 2)] == [True, False, False]
    assert tokenizer.config.eos_token_ids[0] == n_pieces
    plain = tokenizer.encode("<|start|>", add_special=False, parse_special=False)
    assert n_pieces not in plain
    assert ids(tokenizer, "hello world", add_special=False) == [
        token_id(fields, "▁hello"),
        token_id(fields, "▁world"),
    ]


@pytest.mark.parametrize(
    ("settings", "spelled"),
    [
        ({}, ["▁hello", "<s>", "▁hello"]),
        ({"legacy": True}, ["▁hello", "<s>", "▁hello"]),
        ({"legacy": False}, ["▁hello", "<s>", *"hello"]),
        ({"add_prefix_space": False}, [*"hello", "<s>", *"hello"]),
    ],
)
def test_sentencepiece_prefix_goes_where_the_class_puts_it(tmp_path, settings, spelled):
    write(tmp_path, tokenizer_model=spm_model(), tokenizer_config_json=settings)
    tokenizer = load(tmp_path)
    text = "hello<s>hello"
    found = ids(tokenizer, text, add_special=False)
    assert [tokenizer.token_text(i) for i in found] == spelled
    assert tokenizer.decode(found) == text
    assert tokenizer.decode(ids(tokenizer, "hello")) == "<s>hello"
    spaced = "hello</s> hello"
    assert tokenizer.decode(ids(tokenizer, spaced, add_special=False)) == spaced


def trained(**options):
    """A genuine model, trained by the library itself."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in TEXTS if text.strip()] * 3),
        model_writer=model,
        vocab_size=N,
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


# As Llama 2's is made, and as far from it as the trainer's options go.
TRAINED = {
    "llama": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
    },
    "unigram": {"model_type": "unigram", "user_defined_symbols": ["camel", "  "]},
    "no_prefix": {"model_type": "bpe", "add_dummy_prefix": False},
}


@pytest.mark.parametrize("options", TRAINED.values(), ids=TRAINED)
def test_genuine_model_gives_the_ids_of_its_library(tmp_path, options):
    blob = trained(**options)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=blob)
    added = decoder(entry(N, "<|never there|>"), entry(N + 1, "<nor this>", special=False))
    plain = load(write(tmp_path / "plain", tokenizer_model=blob))
    more = load(
        write(
            tmp_path / "more",
            tokenizer_model=blob,
            tokenizer_config_json={"added_tokens_decoder": added},
        )
    )
    for text in TEXTS:
        if not any(symbol in text for symbol in options.get("user_defined_symbols", ())):
            expected = theirs.encode(text)
            for tokenizer in (plain, more):
                found = tokenizer.encode(text, add_special=False, parse_special=False)
                assert found == expected


def test_with_pieces_changes_those_and_nothing_else():
    blob = trained(**TRAINED["llama"])
    before = read_pieces(blob)
    changes = {
        400: ("<400>", USER_DEFINED),
        N: ("<new>", CONTROL),
        N + 1: ("é🦙", NORMAL),
    }
    changed = with_pieces(blob, changes)
    expected = [changes.get(i, piece) for i, piece in enumerate(before)]
    assert read_pieces(changed) == [*expected, changes[N], changes[N + 1]]
    one, other = (sentencepiece.SentencePieceProcessor(model_proto=b) for b in (blob, changed))
    assert [other.id_to_piece(i) for i in (400, N, N + 1)] == [
        "<400>",
        "<new>",
        "é🦙",
    ]
    assert [other.get_score(i) for i in range(N)] == [one.get_score(i) for i in range(N)]
    assert other.is_control(N)
    assert with_pieces(blob, {}) == blob


@pytest.mark.parametrize("kind", ["llama", "no_prefix"])
def test_with_dummy_prefix_changes_the_prefix_alone(kind):
    blob = trained(**TRAINED[kind])
    for wanted in (True, False):
        model = with_dummy_prefix(blob, wanted)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        assert processor.normalize("a b") == ("▁a▁b" if wanted else "a▁b")
        assert read_pieces(model) == read_pieces(blob)


def test_byte_and_unknown_pieces_stay_what_they_are(tmp_path):
    # Files that list every token list these too.
    added = decoder(entry(0, "<unk>"), entry(3, "<0x00>", special=False))
    blob = spm_model()
    write(tmp_path, tokenizer_model=blob, tokenizer_config_json={"added_tokens_decoder": added})
    assert tokenizer_from_path(tmp_path, ROWS, {})[1] == blob


def test_older_files_number_tokens_and_name_roles_apart(tmp_path):
    fields = spm_fields()
    n_pieces = len(fields["tokenizer.ggml.tokens"])
    write(
        tmp_path,
        tokenizer_model=spm_model(),
        added_tokens_json={"<|end|>": n_pieces + 1, "<plain>": n_pieces, "<more>": n_pieces + 2},
        special_tokens_map_json={
            "eos_token": {"content": "<|end|>", "lstrip": False},
            "additional_special_tokens": ["<more>", "▁hello"],
        },
        tokenizer_config_json={"eos_token": "</s>"},
    )
    tokenizer = load(tmp_path)
    assert tokenizer.config.eos_token_ids[0] == n_pieces + 1
    special = [n_pieces + 1, n_pieces + 2, token_id(fields, "▁hello")]
    assert [i for i in range(3 + 256, n_pieces + 3) if tokenizer.is_special(i)] == sorted(
        [*special, token_id(fields, "<|im_end|>")]
    )
