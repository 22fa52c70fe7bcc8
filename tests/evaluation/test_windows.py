"""Cutting a text into windows: what begins them, what is left, what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qllama.config import TokenizerConfig
from qllama.errors import EvaluationError
from qllama.evaluation.windows import Windows, check_same_tokens, cut

BOS = 99


class Letters:
    """One token a character, its code point."""

    def __init__(self, add_bos):
        self.config = TokenizerConfig(
            "tokenizers", bos_token_id=BOS, eos_token_ids=(0,), add_bos_token=add_bos
        )

    def encode(self, text, *, add_special, parse_special, add_eos=True):
        assert not parse_special
        assert not add_eos
        return [BOS] * (add_special and self.config.add_bos_token) + [ord(c) for c in text]


def rows(windows):
    return ["".join(map(chr, row)) for row in windows.tokens.tolist()]


def test_cut_drops_what_fills_no_window():
    windows = cut("abcdefghij", "t", Letters(add_bos=False), 4)
    assert rows(windows) == ["abcd", "efgh"]
    assert windows.tokens.dtype == np.int32


def test_cut_has_bos_in_the_place_of_each_first_token():
    # The text's own BOS comes first; the windows after it lose a token, as in llama.cpp.
    assert rows(cut("abcdefgh", "t", Letters(add_bos=True), 4)) == ["cabc", "cefg"]


@pytest.mark.parametrize(("wanted", "found"), [(None, 3), (2, 2), (5, 3)])
def test_cut_takes_no_more_windows_than_wanted(wanted, found):
    assert len(rows(cut("x" * 13, "t", Letters(add_bos=False), 4, wanted))) == found


@pytest.mark.parametrize(("text", "n"), [("abcdefg", 7), ("abcdefg\n", 7), ("", 0)])
def test_cut_text_of_less_than_two_windows_is_refused(text, n):
    message = (
        f"a.txt: expected at least 8 tokens, two windows of 4, found {n}; "
        "give a longer text or a smaller -c"
    )
    with pytest.raises(EvaluationError, match=f"^{re.escape(message)}$"):
        cut(text, "a.txt", Letters(add_bos=False), 4)


def test_cut_takes_a_text_of_two_windows():
    assert rows(cut("abcdefgh\n", "t", Letters(add_bos=False), 4)) == ["abcd", "efgh"]


@pytest.mark.parametrize(("n_ctx", "first"), [(8, 4), (9, 4)])
def test_windows_first_is_the_middle(n_ctx, first):
    assert Windows(np.zeros((2, n_ctx), np.int32)).first == first


def test_check_same_tokens_accepts_the_same():
    windows = Windows(np.arange(8, dtype=np.int32).reshape(2, 4))
    check_same_tokens("a", windows, "b", Windows(windows.tokens.copy()))


@pytest.mark.parametrize(
    ("base", "place"), [([[0, 1, 2, 3], [4, 9, 6, 7]], 6), ([[0, 1, 2, 3]], 5)]
)
def test_check_same_tokens_names_the_first_that_differs(base, place):
    windows = Windows(np.arange(8, dtype=np.int32).reshape(2, 4))
    message = (
        f"b: expected the vocabulary of a, but from token {place} on they read the text as "
        "different tokens; choose two conversions of one model"
    )
    with pytest.raises(EvaluationError, match=f"^{re.escape(message)}$"):
        check_same_tokens("a", windows, "b", Windows(np.array(base, np.int32)))
