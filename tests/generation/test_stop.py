from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllama.generation.stop import StopMatcher


def run(stops, pieces):
    """Return what each piece lets out, and last what is withheld at the end, if no stop came."""
    matcher = StopMatcher(stops)
    out = []
    for piece in pieces:
        out.append(matcher.push(piece))
        if matcher.found:
            return out
    return [*out, matcher.flush()]


def until_a_stop_ends(text, stops):
    """The definition, character by character."""
    for end in range(len(text) + 1):
        ending = [s for s in stops if text[:end].endswith(s)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@pytest.mark.parametrize(
    ("stops", "pieces", "out"),
    [
        ([], ["a", "b"], ["a", "b", ""]),
        (["END"], ["some ", "EN", "D more"], ["some ", "", ""]),
        (["END"], ["some ", "EN", "tity"], ["some ", "", "ENtity", ""]),
        (["END"], ["all EN"], ["all ", "EN"]),
        (["END"], ["E", "E", "N", "D"], ["", "E", "", ""]),
        (["\n\n", "\nQ:"], ["A\n", "\n"], ["A", ""]),
        (["\n\n", "\nQ:"], ["A\n", "Q", ":"], ["A", "", ""]),
        (["\n\n", "\nQ:"], ["A\n", "B"], ["A", "\nB", ""]),
        (["abc", "b"], ["xabc"], ["xa"]),
        (["abc", "bc"], ["xabc"], ["x"]),
        (["aab"], ["aaab"], ["a"]),
        (["abab"], ["ab", "a", "cab", "ab"], ["", "", "abac", ""]),
        (["é"], ["caf", "é"], ["caf", ""]),
        (["a"], ["", "a"], ["", ""]),
    ],
)
def test_stop_text_is_withheld_until_certain(stops, pieces, out):
    assert run(stops, pieces) == out


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("ab", max_size=5), max_size=6),
)
def test_stop_result_does_not_depend_on_how_the_text_is_split(stops, pieces):
    assert "".join(run(stops, pieces)) == until_a_stop_ends("".join(pieces), stops)


@pytest.mark.parametrize("stop", ["", None, 3])
def test_stop_that_is_no_text_is_refused(stop):
    with pytest.raises(ValueError, match="stop: expected non-empty strings"):
        StopMatcher(["ok", stop])
