"""The conversation behind `>>> `, played line by line."""

from __future__ import annotations

import signal

import pytest
from fake_llama import FakeLlama

from qllama.cli.repl import HELP, Repl
from qllama.errors import ContextLengthError

CTRL_C = KeyboardInterrupt()
CTRL_D = EOFError()


@pytest.fixture
def play(capsys):
    """Type the given lines (or keys); return (stdout, stderr, messages that remain)."""

    def session(llm, *keys, system=None, verbose=False):
        keys = iter([*keys, CTRL_D])

        def read_line(prompt):
            print(prompt, end="")
            key = next(keys)
            if isinstance(key, BaseException):
                raise key
            print(key)
            return key

        options = {"max_tokens": -1, "seed": 1}
        repl = Repl(llm, read_line, system=system, options=options, verbose=verbose)
        repl.run()
        out, err = capsys.readouterr()
        return out, err, repl.messages

    return session


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_repl_turns_give_the_whole_conversation_to_the_model(play):
    llm = FakeLlama([["Hel", "lo."], ["Yes."]])
    out, err, _ = play(llm, "hi", "are you there?", "/bye")
    assert out == ">>> hi\nHello.\n\n>>> are you there?\nYes.\n\n>>> /bye\n"
    assert err == ""
    assert llm.calls == [
        ([user("hi")], {"max_tokens": -1, "seed": 1}),
        (
            [user("hi"), assistant("Hello."), user("are you there?")],
            {"max_tokens": -1, "seed": 1},
        ),
    ]


def test_repl_ctrl_d_leaves(play):
    out, _, _ = play(FakeLlama([]))
    assert out == ">>> "


def test_repl_ctrl_c_when_idle_tells_how_to_leave(play):
    out, _, _ = play(FakeLlama([]), CTRL_C, "/bye")
    assert out == ">>> Use Ctrl + d or /bye to exit.\n>>> /bye\n"


def test_repl_ctrl_c_during_an_answer_keeps_what_was_said(play):
    llm = FakeLlama([["one ", "two", KeyboardInterrupt()], ["three"]])
    out, _, messages = play(llm, "count", "go on", "/bye")
    assert out == ">>> count\none two\n\n>>> go on\nthree\n\n>>> /bye\n"
    assert messages == [user("count"), assistant("one two"), user("go on"), assistant("three")]


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_repl_ctrl_c_cancels_the_answer_rather_than_raise(play):
    llm = FakeLlama([["one ", press_ctrl_c, "two", "three"], ["ok"]])
    _, err, messages = play(llm, "count", "go on", verbose=True)
    assert messages[:2] == [user("count"), assistant("one ")]
    assert err.count("eval rate:            25.00") == 2


def test_repl_second_ctrl_c_interrupts_at_once(play):
    def press_again():
        press_ctrl_c()
        pytest.fail("the first Ctrl-C must have been spent")

    llm = FakeLlama([["one ", lambda: (press_ctrl_c(), press_again())]])
    _, _, messages = play(llm, "count")
    assert messages == [user("count"), assistant("one ")]


def test_repl_ctrl_c_handler_is_put_back(play):
    before = signal.getsignal(signal.SIGINT)
    play(FakeLlama([["a"], ["b", press_ctrl_c, "c"]]), "one", "two")
    assert signal.getsignal(signal.SIGINT) is before


def test_repl_ctrl_c_before_the_first_word_forgets_the_question(play):
    llm = FakeLlama([[KeyboardInterrupt()], ["ok"]])
    _, _, messages = play(llm, "oops", "hi")
    assert messages == [user("hi"), assistant("ok")]


def test_repl_error_is_one_line_and_the_session_goes_on(play):
    llm = FakeLlama([[ContextLengthError("too long")], ["ok"]])
    out, err, messages = play(llm, "x" * 99, "hi", "/bye")
    assert err == "qllama: error: too long\n"
    assert out.endswith(">>> hi\nok\n\n>>> /bye\n")
    assert messages == [user("hi"), assistant("ok")]


def test_repl_clear_forgets_all_but_the_system_message(play):
    llm = FakeLlama([["a"], ["b"]])
    system = {"role": "system", "content": "Be brief."}
    out, _, _ = play(llm, "one", "/clear", "two", system="Be brief.")
    assert "Cleared the conversation.\n" in out
    assert [messages for messages, _ in llm.calls] == [
        [system, user("one")],
        [system, user("two")],
    ]


@pytest.mark.parametrize("command", ["/?", "/help"])
def test_repl_help_lists_the_commands(play, command):
    out, _, _ = play(FakeLlama([]), command)
    assert out == f">>> {command}\n{HELP}\n>>> "


def test_repl_unknown_command_gets_one_line(play):
    llm = FakeLlama([])
    out, _, _ = play(llm, "/nonsense now")
    assert out == ">>> /nonsense now\nUnknown command '/nonsense'. Type /? for help\n>>> "
    assert llm.calls == []


def test_repl_blank_line_is_not_sent(play):
    llm = FakeLlama([])
    play(llm, "", "   ")
    assert llm.calls == []


def test_repl_triple_quotes_hold_several_lines(play):
    llm = FakeLlama([["ok"]])
    out, _, _ = play(llm, '"""first', "/not a command", 'last"""')
    assert out.startswith('>>> """first\n... /not a command\n... last"""\n')
    assert llm.calls[0][0] == [user("first\n/not a command\nlast")]


def test_repl_triple_quotes_on_lines_of_their_own_add_no_lines(play):
    llm = FakeLlama([["ok"]])
    play(llm, '"""', "all here", '"""')
    assert llm.calls[0][0] == [user("all here")]


def test_repl_triple_quotes_on_one_line(play):
    llm = FakeLlama([["ok"]])
    play(llm, '"""all here"""')
    assert llm.calls[0][0] == [user("all here")]


def test_repl_ctrl_c_leaves_a_multi_line_message(play):
    llm = FakeLlama([["ok"]])
    play(llm, '"""half', CTRL_C, "hi")
    assert [messages for messages, _ in llm.calls] == [[user("hi")]]


def test_repl_verbose_prints_timings_after_each_answer(play):
    _, err, _ = play(FakeLlama([["ok"]]), "hi", verbose=True)
    assert "eval rate:            25.00 tokens/s" in err
