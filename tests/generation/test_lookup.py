from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from qllama.generation.lookup import PromptLookup


def guessed(text, n=8, **how):
    tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    return list(islice(PromptLookup(**how).guesses(tokens, lambda: None), n))


def text_of(guesses):
    return "".join(chr(guess.token) for guess in guesses)


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        ("one two three, one", " two thr"),
        # The longest match counts, not the last: " t" stands nearer than "two t" does.
        ("two times a tree, two t", "imes a t"),
        # Of equally long ones the last.
        ("a1. b2. a3. a", "3. a3. a"),
        # What goes round and round is taken to go on so.
        ("xabcabcab", "cabcabca"),
        ("aaa", "aaaaaaaa"),
        ("abc", ""),
        ("a", ""),
    ],
)
def test_lookup_guesses_what_followed_last_time(text, follows):
    assert text_of(guessed(text)) == follows


def test_lookup_kind_is_the_length_of_the_match_and_grows_with_each_guess():
    assert [guess.kind for guess in guessed("the cat, the", 7)] == [2, 3, 4, 5, 6, 7, 7]


def test_lookup_compares_and_guesses_no_more_tokens_than_it_is_told():
    text = "two times a tree, two t"
    assert text_of(guessed(text, max_ngram_size=1)) == "wo two t"
    assert text_of(guessed(text, num_pred_tokens=3)) == "ime"


@pytest.mark.parametrize("name", ["max_ngram_size", "num_pred_tokens"])
def test_lookup_number_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, found 0"):
        PromptLookup(**{name: 0})
