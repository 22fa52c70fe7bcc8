"""The conversation behind `>>> `, played line by line."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
from fake_llama import TIMINGS, FakeLlama

from qllama.errors import ContextLengthError
from qllama.generation.results import Piece

CTRL_C = KeyboardInterrupt()
STATISTICS = """\
total duration:       2.540s
load duration:        500.0ms
prompt eval count:    10 token(s)
prompt eval duration: 40.0ms
prompt eval rate:     250.00 tokens/s
eval count:           50 token(s)
eval duration:        2.000s
eval rate:            25.00 tokens/s
draft acceptance:     0.75 (6 of 8 guessed token(s))

"""


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_talk_turns_give_the_whole_conversation_to_the_model(play):
    llm = FakeLlama([["Hel", "lo."], ["Yes."]])
    played = play(llm, "hi", "are you there?", "/bye")
    assert played.shown == ">>> hi\nHello.\n\n>>> are you there?\nYes.\n\n>>> /bye\n"
    assert played.answers == "Hello.\n\nYes.\n\n"
    assert llm.calls == [
        ([user("hi")], {"max_tokens": -1, "seed": 1}),
        (
            [user("hi"), assistant("Hello."), user("are you there?")],
            {"max_tokens": -1, "seed": 1},
        ),
    ]


@pytest.mark.parametrize("command", ["/bye", "/exit"])
def test_talk_bye_leaves(play, command):
    assert play(FakeLlama([]), command, "never typed").shown == f">>> {command}\n"


def test_talk_ctrl_d_leaves(play):
    assert play(FakeLlama([])).shown == ">>> "


def test_talk_ctrl_c_when_idle_tells_how_to_leave(play):
    shown = play(FakeLlama([]), CTRL_C, "/bye").shown
    assert shown == ">>> Use Ctrl + d or /bye to exit.\n>>> /bye\n"


def test_talk_ctrl_c_during_an_answer_keeps_what_was_said(play):
    llm = FakeLlama([["one ", "two", KeyboardInterrupt()], ["three"]])
    played = play(llm, "count", "go on", "/bye")
    assert played.shown == ">>> count\none two\n\n>>> go on\nthree\n\n>>> /bye\n"
    assert played.messages == [
        user("count"),
        assistant("one two"),
        user("go on"),
        assistant("three"),
    ]


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_talk_ctrl_c_cancels_the_answer_rather_than_raise(play):
    llm = FakeLlama([["one ", press_ctrl_c, "two", "three"], ["ok"]])
    played = play(llm, "count", "go on", verbose=True)
    assert played.messages[:2] == [user("count"), assistant("one ")]
    assert played.shown.count("eval rate:            25.00") == 2


def test_talk_second_ctrl_c_interrupts_at_once(play):
    def press_again():
        press_ctrl_c()
        pytest.fail("the first Ctrl-C must have been spent")

    llm = FakeLlama([["one ", lambda: (press_ctrl_c(), press_again())]])
    assert play(llm, "count").messages == [user("count"), assistant("one ")]


def test_talk_ctrl_c_handler_is_put_back(play):
    before = signal.getsignal(signal.SIGINT)
    play(FakeLlama([["a"], ["b", press_ctrl_c, "c"]]), "one", "two")
    assert signal.getsignal(signal.SIGINT) is before


def test_talk_ctrl_c_before_the_first_word_forgets_the_question(play):
    llm = FakeLlama([[KeyboardInterrupt()], ["ok"]])
    assert play(llm, "oops", "hi").messages == [user("hi"), assistant("ok")]


def test_talk_ctrl_c_before_the_first_word_keeps_what_was_read(play, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Notes.")
    for first in (KeyboardInterrupt(), press_ctrl_c):
        llm = FakeLlama([[first, "never said"], ["ok"], ["ok"]])
        shown = play(llm, f"/read {path}", "oops", "hi", "and now?").shown
        assert ">>> oops\n\n\nThe text of /read goes with your next message.\n>>> hi\nok" in shown
        assert [call[0][-1]["content"] for call in llm.calls[1:]] == ["Notes.\n\nhi", "and now?"]


def test_talk_ctrl_c_in_a_command_is_not_taken_for_one_at_the_prompt(play):
    def open_model(name, n_ctx):
        raise KeyboardInterrupt

    llm = FakeLlama([["ok"]])
    shown = play(llm, "/load other", "hi", open_model=open_model).shown
    assert shown == ">>> /load other\nLoading model 'other'\nInterrupted.\n>>> hi\nok\n\n>>> "


@pytest.mark.parametrize("error", [ContextLengthError("too long"), ValueError("too long")])
def test_talk_error_is_one_line_and_the_session_goes_on(play, error):
    played = play(FakeLlama([["half", error], ["ok"]]), "x", "hi", "/bye")
    assert played.shown == (">>> x\nhalf\n\nerror: too long\n>>> hi\nok\n\n>>> /bye\n")
    assert played.messages == [user("x"), assistant("half"), user("hi"), assistant("ok")]


def test_talk_blank_line_is_not_sent(play):
    llm = FakeLlama([])
    play(llm, "", "   ", '"""  """')
    assert llm.calls == []


def test_talk_triple_quotes_hold_several_lines(play):
    llm = FakeLlama([["ok"]])
    shown = play(llm, '"""first', "/not a command", 'last"""').shown
    assert shown.startswith('>>> """first\n... /not a command\n... last"""\nok')
    assert llm.calls[0][0] == [user("first\n/not a command\nlast")]


@pytest.mark.parametrize(
    "lines", [('"""', "all here", '"""'), ('"""all here"""',), ("  all here  ",)]
)
def test_talk_quotes_and_edges_do_not_belong_to_the_message(play, lines):
    llm = FakeLlama([["ok"]])
    play(llm, *lines)
    assert llm.calls[0][0] == [user("all here")]


def test_talk_ctrl_c_leaves_a_multi_line_message(play):
    llm = FakeLlama([["ok"]])
    play(llm, '"""half', CTRL_C, "hi")
    assert [messages for messages, _ in llm.calls] == [[user("hi")]]


def test_talk_pasted_lines_that_begin_with_a_path_are_a_message(play):
    llm = FakeLlama([["ok"]])
    play(llm, "/usr/bin/env\nis what?")
    assert llm.calls[0][0] == [user("/usr/bin/env\nis what?")]


def test_talk_verbose_prints_ollamas_statistics_after_each_answer(play):
    shown = play(FakeLlama([["ok"]]), "hi", verbose=True).shown
    assert shown == f">>> hi\nok\n\n{STATISTICS}>>> "


def test_talk_verbose_counts_the_load_for_the_first_answer_only(play):
    shown = play(FakeLlama([["a"], ["b"]]), "one", "two", verbose=True).shown
    later = STATISTICS.replace("2.540s", "2.040s").replace("500.0ms", "0.0ms")
    assert shown == f">>> one\na\n\n{STATISTICS}>>> two\nb\n\n{later}>>> "


def test_talk_answer_without_a_token_brings_no_statistics(play):
    nothing = Piece("", (), "cancelled", replace(TIMINGS, completion_tokens=0))
    played = play(FakeLlama([["a"], [nothing]]), "one", "two", verbose=True)
    assert played.shown == f">>> one\na\n\n{STATISTICS}>>> two\n\n\n>>> "
    assert played.chat.status(80) == "fake · context 6/100 (6%) · 25.0 tokens/s"
    assert played.chat.status(40) == "context 6/100 (6%) · 25.0 tokens/s"


def test_talk_question_that_got_no_answer_takes_no_context(play):
    llm = FakeLlama([["a"], [press_ctrl_c, "never said"]])
    played = play(llm, "one", "two")
    assert played.messages == [user("one"), assistant("a")]
    assert played.chat.n_used == len(llm.tokenize_chat(played.messages))
