"""What is taken away when the window is full, and that it is said."""

from __future__ import annotations

import pytest
from fake_llama import TIMINGS, FakeLlama

from qllama.cli.repl.overflow import first_that_fits
from qllama.generation.results import Piece, Timings

# FakeLlama counts a token a character and one a message; its window here is of 40.
SYSTEM = "Sys."
TURNS = ("aaaa", "bbbb", "cccc")


def contents(call):
    return [message["content"] for message in call[0]]


def fake(*answers):
    llm = FakeLlama([["AAAA"], ["BBBB"], ["CCCC"], *answers])
    llm.n_ctx = 40
    return llm


def full(text, ids=(1,)):
    """A last piece as it is when the window is full."""
    timings = Timings(0.5, 20, 10, 0.04, 20, 2.0)
    return Piece(text, ids, "length", timings)


@pytest.mark.parametrize(("limit", "steps"), [(100, 0), (70, 3), (69, 4), (5, 10), (-1, 10)])
def test_first_that_fits_is_the_fewest_steps(limit, steps):
    assert first_that_fits(10, lambda n: 100 - 10 * n, limit) == steps


def test_overflow_shift_forgets_the_oldest_turns_and_keeps_the_system_message(play):
    llm = fake(["DDDD"])
    # 5 + 3 * 10 + 6 = 41 tokens; two turns fewer are the first that leave 10 of 40 free.
    played = play(llm, *TURNS, "ddddd", system=SYSTEM)
    assert contents(llm.calls[-1]) == [SYSTEM, "cccc", "CCCC", "ddddd"]
    assert played.shown.endswith(
        ">>> ddddd\n"
        "Context window full: forgot the oldest 2 turns; the system message stays.\n"
        "DDDD\n\n>>> "
    )
    assert [m["content"] for m in played.messages][1:3] == ["cccc", "CCCC"]


def test_overflow_that_fits_forgets_nothing(play):
    llm = fake(["DDDD"])
    assert "forgot" not in play(llm, *TURNS, "dddd", system=SYSTEM).shown


def test_overflow_error_refuses_the_question_and_keeps_everything(play):
    llm = fake()
    played = play(llm, *TURNS, "ddddd", system=SYSTEM, on_overflow="error")
    assert played.shown.endswith(
        ">>> ddddd\nerror: the conversation takes 41 tokens with this message, more than the "
        "context window of 40: /undo or /clear makes room, /set parameter num_ctx N sets its "
        "size\n>>> "
    )
    assert len(played.messages) == 7


def test_overflow_question_too_long_alone_is_refused_and_keeps_everything(play):
    played = play(fake(), *TURNS, "d" * 50, system=SYSTEM)
    assert played.shown.endswith(
        "error: the message takes 56 tokens with the system message, too many for the context "
        "window of 40: shorten it, make the window larger (-c, /set parameter num_ctx), or "
        "have it cut (--on-overflow truncate)\n>>> "
    )
    assert len(played.messages) == 7


def test_overflow_truncate_cuts_the_questions_beginning(play):
    llm = fake(["DDDD"])
    played = play(llm, *TURNS, "x" * 30 + "d" * 20, system=SYSTEM, on_overflow="truncate")
    assert contents(llm.calls[-1]) == [SYSTEM, "xxxx" + "d" * 20]
    assert played.shown.endswith(
        "Context window full: forgot the oldest 3 turns; the system message stays.\n"
        "Context window full: cut the first 26 of the message's 50 characters.\n"
        "DDDD\n\n>>> "
    )


def test_overflow_in_an_answer_forgets_turns_and_the_answer_goes_on(play):
    llm = fake(["one ", full("two ", (2, 3))], ["three"])
    played = play(llm, *TURNS, "d", verbose=True)
    rest, options = llm.calls[-1]
    # The last two turns and the question, and after them what was said of the answer.
    assert rest == [*llm.tokenize_chat(played.messages[:-1]), 0, 2, 3]
    assert options["max_tokens"] == -1
    assert [m["content"] for m in played.messages] == [
        "bbbb",
        "BBBB",
        "cccc",
        "CCCC",
        "d",
        "one two three",
    ]
    tail = played.shown.rpartition(">>> d\n")[2]
    assert tail.startswith("one two three\n\nContext window full: forgot the oldest turn.\n")
    # Both parts of the answer: 20 and 50 tokens in 2 seconds each.
    assert "eval count:           70 token(s)\neval duration:        4.000s\n" in tail
    assert played.chat.n_used == TIMINGS.prompt_tokens + TIMINGS.completion_tokens


@pytest.mark.parametrize("policy", ["truncate", "error"])
def test_overflow_in_an_answer_ends_it_where_nothing_may_be_forgotten(play, policy):
    llm = fake(["one ", full("two")])
    played = play(llm, *TURNS, "d", on_overflow=policy)
    assert played.shown.endswith(
        "one two\n\nStopped because the context window is full; "
        "/set parameter num_ctx N sets its size.\n>>> "
    )
    assert len(played.messages) == 8


def test_overflow_by_the_answer_alone_ends_it(play):
    llm = FakeLlama([[full("two")]])
    llm.n_ctx = 40
    assert "Stopped because the context window is full" in play(llm, "d").shown


@pytest.mark.parametrize(
    "form", [{"response_format": {"type": "json_object"}}, {"grammar": 'root ::= "a"*'}]
)
def test_overflow_in_an_answer_of_a_form_ends_it(play, form):
    llm = fake([full('{"a":')])
    played = play(llm, *TURNS, "d", **form)
    assert "Stopped because the context window is full" in played.shown
    assert len(llm.calls) == 4


def test_answer_that_may_have_no_more_tokens_is_not_continued(play):
    llm = fake([full("one", (1, 2, 3))])
    played = play(llm, *TURNS, "d", max_tokens=3)
    assert played.shown.endswith(">>> d\none\n\n>>> ")
    llm = fake([full("one", (1, 2, 3))], ["two"])
    play(llm, *TURNS, "d", max_tokens=5)
    assert llm.calls[-1][1]["max_tokens"] == 2
