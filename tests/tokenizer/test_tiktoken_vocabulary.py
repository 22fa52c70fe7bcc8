from __future__ import annotations

import base64
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_repos import decoder, entry, tiktoken_file, write
from tokenizer_texts import TEXTS

from converter.pretokenizers import pre_tokenizer
from converter.tokenizer_files import tokenizer_from_path
from qllama.tokenizer import load_tokenizer

FILE = tiktoken_file()
RANKS = {
    base64.b64decode(line.split()[0]): int(line.split()[1]) for line in FILE.splitlines() if line
}
N_RANKS = len(RANKS)
ROWS = N_RANKS + 256


def load(path, declared=None, content=FILE, rows=ROWS):
    return load_tokenizer(
        *tokenizer_from_path(write(path, tokenizer_model=content), rows, declared or {})
    )


def names(tokenizer):
    return [tokenizer.token_text(i) for i in range(tokenizer.vocab_size - 256, ROWS)]


def reference_merge(piece, ranks):
    """Merge as tiktoken does: the neighbours that make the token of the lowest rank, leftmost."""
    if piece in ranks:
        return [piece]
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        pairs = [
            (ranks[one + other], i)
            for i, (one, other) in enumerate(itertools.pairwise(parts))
            if one + other in ranks
        ]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_special_tokens_of_llama_3_and_3_1_are_metas(tmp_path):
    old = load(tmp_path)
    new = load(tmp_path, {"rope_scaling": {"rope_type": "llama3"}})
    begin = ["<|begin_of_text|>", "<|end_of_text|>"]
    header = ["<|start_header_id|>", "<|end_header_id|>"]

    def reserved(*numbers):
        return [f"<|reserved_special_token_{i}|>" for i in numbers]

    assert names(old) == [
        *begin,
        *reserved(0, 1, 2, 3),
        *header,
        *reserved(4),
        "<|eot_id|>",
        *reserved(*range(5, 251)),
    ]
    assert names(new) == [
        *begin,
        *reserved(0, 1),
        *["<|finetune_right_pad_id|>", "<|step_id|>"],
        *header,
        *["<|eom_id|>", "<|eot_id|>", "<|python_tag|>"],
        *reserved(*range(2, 247)),
    ]
    assert old.config.eos_token_ids == (N_RANKS + 1, N_RANKS + 9)
    assert new.config.eos_token_ids == (N_RANKS + 1, N_RANKS + 9, N_RANKS + 8)
    assert old.config.bos_token_id == new.config.bos_token_id == N_RANKS
    assert (new.config.add_bos_token, new.config.add_eos_token) == (True, False)
    assert all(new.is_special(i) for i in range(N_RANKS, ROWS))


@pytest.mark.parametrize(
    ("declared", "is_3_1"),
    [
        ({}, False),
        ({"rope_scaling": None}, False),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, False),
        ({"rope_scaling": {"rope_type": "llama3"}}, True),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, True),
    ],
)
def test_llama_3_1_is_known_by_its_scaled_rope(tmp_path, declared, is_3_1):
    assert ("<|eom_id|>" in names(load(tmp_path, declared))) is is_3_1


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=24).map(bytes))
def test_merges_of_any_ranks_give_what_tiktoken_does(piece):
    # Overlapping tokens, and some that several pairs make.
    words = [b"\0\0", b"\0\1", b"\1\2", b"\0\1\2", b"\2\0", b"\1\2\0", b"\0\0\0", b"\0\0\0\0"]
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {word: 256 + i for i, word in enumerate(words)}
    assert merged(piece, ranks) == [ranks[part] for part in reference_merge(piece, ranks)]


def merged(piece, ranks):
    """Merge with the library, by the pairs that the conversion makes of ranks."""
    import tokenizers

    from converter.vocabularies.tiktoken_file import _merges, _spelled

    vocab = {_spelled(token): rank for token, rank in ranks.items()}
    model = tokenizers.models.BPE(vocab, _merges(ranks), ignore_merges=True)
    return [token.id for token in model.tokenize(_spelled(piece))]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_cut_and_merged_as_by_tiktoken(tmp_path, text):
    import tokenizers

    tokenizer = load(tmp_path)
    # The pattern itself is tested against cuts made by hand, in test_gguf_vocabulary.
    split = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(pre_tokenizer("llama3").steps[0]["pattern"]["Regex"]), "isolated"
    )
    pieces = [piece.encode() for piece, _ in split.pre_tokenize_str(text)]
    expected = [RANKS[part] for piece in pieces for part in reference_merge(piece, RANKS)]
    assert tokenizer.encode(text, add_special=False, parse_special=False) == expected
    assert tokenizer.decode(expected) == text


def test_tokens_of_the_files_beside_it_go_before_metas_names(tmp_path):
    added = decoder(entry(N_RANKS + 20, "<|mine|>"), entry(N_RANKS + 9, "<|im_end|>"))
    write(tmp_path, tokenizer_config_json={"added_tokens_decoder": added})
    tokenizer = load(tmp_path)
    assert tokenizer.token_text(N_RANKS + 20) == "<|mine|>"
    assert tokenizer.config.eos_token_ids == (N_RANKS + 1, N_RANKS + 9)


@pytest.mark.reference
def test_ids_equal_tiktoken(tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    tokenizer = load(tmp_path)
    theirs = tiktoken.Encoding(
        "llama3",
        pat_str=pre_tokenizer("llama3").steps[0]["pattern"]["Regex"],
        mergeable_ranks=RANKS,
        special_tokens={text: N_RANKS + i for i, text in enumerate(names(tokenizer))},
    )
    for text in [*TEXTS, "<|begin_of_text|>hello<|eot_id|>"]:
        plain = tokenizer.encode(text, add_special=False, parse_special=False)
        assert plain == theirs.encode(text, disallowed_special=())
        parsed = tokenizer.encode(text, add_special=False, parse_special=True)
        assert parsed == theirs.encode(text, allowed_special="all")
