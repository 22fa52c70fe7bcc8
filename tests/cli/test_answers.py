"""`qllama chat -p` and `qllama generate`: what the model is asked, and what is printed."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fake_llama import TIMINGS

from qllama.cli.answering import PrintedAnswer
from qllama.cli.progress import PromptProgress
from qllama.cli.runtime import RuntimeOptions
from qllama.errors import QllamaError
from qllama.generation.results import Piece
from qllama.tokenizer.chat import PLAIN

DEFAULTS = {
    "max_tokens": -1,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "stop": (),
    "seed": -1,
    "draft_max": 15,
}

DEFAULT_MODEL_DEFAULTS = {**DEFAULTS, "temperature": 0.1, "top_p": 0.9, "repeat_penalty": 1.1}

ALL_FLAGS = (
    "-n 7 -s 3 --temp 0.5 --top-k 5 --top-p 0.9 --min-p 0.1 --repeat-penalty 1.1 "
    "--repeat-last-n 32 --presence-penalty 0.2 --frequency-penalty -0.3 "
    "-l 12+1.5 -l 13-inf --stop END --stop X -c 512 -t 2 -b 64 --draft-max 4 -md small.qlm"
)


def test_chat_prompt_prints_only_the_answer(run, fake_llama):
    fake = fake_llama(["The capital ", "is Paris."])
    result = run("chat", "-p", "What is the capital of France?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "The capital is Paris.\n", "")
    question = {"role": "user", "content": "What is the capital of France?"}
    assert fake.calls == [([{"role": "system", "content": ""}, question], DEFAULT_MODEL_DEFAULTS)]
    assert fake.loaded == [(None, RuntimeOptions(n_ctx=0, n_threads=None, n_batch=512))]


def test_chat_other_model_has_the_plain_defaults(run, fake_llama):
    fake = fake_llama(["Yes."])
    run("chat", "other.qlm", "-p", "hi")
    assert fake.calls == [([{"role": "user", "content": "hi"}], DEFAULTS)]


def test_chat_flags_win_over_the_default_models_defaults(run, fake_llama):
    fake = fake_llama(["Yes."])
    run("chat", "-m", "SmolLM2-135M", "-p", "hi", "--temp", "0.8", "-sys", "Be brief.")
    messages, options = fake.calls[0]
    assert messages[0]["content"] == "Be brief."
    assert (options["temperature"], options["top_p"]) == (0.8, 0.9)


@pytest.mark.parametrize("flag", ["-sys", "--system"])
def test_chat_system_message_comes_first(run, fake_llama, flag):
    fake = fake_llama(["Ahoy."])
    run("chat", flag, "You are a pirate.", "-s", "5", "-p", "hi")
    messages, options = fake.calls[0]
    assert messages[0] == {"role": "system", "content": "You are a pirate."}
    assert options["seed"] == 5


def test_chat_template_file_is_the_models_template(run, fake_llama):
    fake = fake_llama(["Ahoy."])
    run("chat", "-p", "hi", "--chat-template", "mine.jinja")
    assert fake.chat_template == Path("mine.jinja")


def test_chat_model_without_template_says_so_and_continues_the_text(run, fake_llama):
    fake = fake_llama(["Ahoy."])
    fake.chat_template = None
    result = run("chat", "base.qlm", "-p", "hi")
    assert (result.exit_code, result.stdout) == (0, "Ahoy.\n")
    assert result.stderr == (
        "qllama: the model has no chat template: it continues the text as it is; "
        "--chat-template FILE gives it one\n"
    )
    assert fake.chat_template == PLAIN


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_command_flags_reach_the_model(run, fake_llama, command):
    fake = fake_llama(["a"])
    assert run(command, "-p", "hi", *ALL_FLAGS.split()).exit_code == 0
    assert fake.calls[0][1] == {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "repeat_last_n": 32,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "logit_bias": {12: 1.5, 13: float("-inf")},
        "stop": ("END", "X"),
        "seed": 3,
        "draft_max": 4,
    }
    assert fake.loaded[0][1] == RuntimeOptions(
        n_ctx=512, n_threads=2, n_batch=64, draft_model="small.qlm"
    )


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize(("flag", "use_mmap"), [("--no-mmap", False), ("--mmap", True)])
def test_command_mmap_flag_says_how_the_file_is_loaded(run, fake_llama, command, flag, use_mmap):
    fake = fake_llama(["a"])
    assert run(command, "-p", "hi", flag).exit_code == 0
    assert fake.loaded[0][1].use_mmap is use_mmap


@pytest.mark.parametrize(
    ("arguments", "kv_type"),
    [
        ("-ctk f16", "f16"),
        ("-ctk q8_0 -ctv q8_0", "q8"),
        ("-ctk Q8_0", "q8"),
        ("--cache-type-v q8_0", "q8"),
        ("--cache-type-k f16 --cache-type-v f16", "f16"),
    ],
)
def test_command_cache_type_of_either_is_that_of_both(run, fake_llama, arguments, kv_type):
    fake = fake_llama(["Yes."])
    run("generate", "m.qlm", "-p", "hi", *arguments.split())
    assert fake.loaded[0][1].kv_type == kv_type


def test_command_two_cache_types_are_refused(run, fake_llama):
    fake_llama(["Yes."])
    result = run("generate", "m.qlm", "-p", "hi", "-ctk", "f16", "-ctv", "q8_0")
    assert result.exit_code == 2
    assert "-ctk is f16 and -ctv is q8_0: expected one type for both" in result.stderr


@pytest.mark.parametrize("arguments", [["m.qlm"], ["-m", "m.qlm"], ["--model", "m.qlm"]])
def test_command_model_is_argument_or_option(run, fake_llama, arguments):
    fake = fake_llama(["a"])
    run("chat", *arguments, "-p", "hi")
    assert fake.loaded[0][0] == "m.qlm"


def test_answer_cut_short_by_an_error_keeps_what_was_said(run, fake_llama):
    fake_llama(["Half of", QllamaError("the rest is lost")])
    result = run("chat", "-p", "hi")
    assert (result.exit_code, result.stdout) == (1, "Half of\n")
    assert result.stderr == "qllama: error: the rest is lost\n"


def test_answer_that_never_began_prints_nothing(run, fake_llama):
    fake_llama([QllamaError("too long")])
    assert run("chat", "-p", "hi").stdout == ""


def test_answer_interrupted_exits_130(run, fake_llama):
    fake_llama(["Half of", lambda: signal.raise_signal(signal.SIGINT), "it"])
    result = run("chat", "-p", "hi")
    assert (result.exit_code, result.stdout) == (130, "Half of\n")
    assert result.stderr.strip() == "qllama: error: interrupted"


def test_answer_verbose_prints_timings_under_ollamas_labels(run, fake_llama):
    fake_llama(["ok"])
    result = run("chat", "-p", "hi", "--verbose")
    assert result.stdout == "ok\n"
    assert result.stderr.splitlines() == [
        "",
        "total duration:       2.540s",
        "load duration:        500.0ms",
        "prompt eval count:    10 token(s)",
        "prompt eval duration: 40.0ms",
        "prompt eval rate:     250.00 tokens/s",
        "eval count:           50 token(s)",
        "eval duration:        2.000s",
        "eval rate:            25.00 tokens/s",
        "draft acceptance:     0.75 (6 of 8 guessed token(s))",
    ]


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_answer_to_a_long_prompt_tells_how_far_it_is_read(
    run, fake_llama, monkeypatch, command, flag
):
    told = []
    monkeypatch.setattr(PromptProgress, "read", lambda self, *read: told.append(read))
    monkeypatch.setattr(PromptProgress, "finish", lambda self: told.append("finished"))
    fake_llama(["a"]).reads = [(1, 3), (2, 3)]
    assert run(command, "-p", "hi", *flag).exit_code == 0
    assert told == [(1, 3), (2, 3), "finished"]


def test_answer_cancelled_before_its_first_token_says_nothing_of_its_prompt(
    run, fake_llama, monkeypatch
):
    nothing = Piece("", (), "cancelled", replace(TIMINGS, completion_tokens=0))
    told = []
    monkeypatch.setattr(PromptProgress, "finish", lambda self: told.append("finished"))
    fake_llama([nothing], [nothing])
    result = run("chat", "-p", "hi", "-v")
    assert (result.exit_code, result.stdout) == (130, "\n")
    assert "eval" not in result.stderr
    assert run("chat", "-p", "hi", "--json").exit_code == 130
    assert told == []


@pytest.mark.parametrize(("limit", "expected"), [(["-n", "1"], False), ([], True)])
def test_answer_full_context_is_told_unless_a_limit_was_set(run, fake_llama, limit, expected):
    fake_llama([Piece("a", (0,), "length")])
    result = run("chat", "-p", "hi", *limit)
    assert ("context window is full" in result.stderr) is expected


@pytest.fixture
def sigint_handler():
    """Put pytest's handler of Ctrl-C back."""
    before = signal.getsignal(signal.SIGINT)
    yield before
    signal.signal(signal.SIGINT, before)


def test_answer_interrupted_while_its_handler_is_installed_is_cancelled(
    fake_llama, monkeypatch, sigint_handler
):
    install = signal.signal

    def interrupted(number, handler):
        before = install(number, handler)
        if handler is not sigint_handler:
            signal.raise_signal(number)
        return before

    monkeypatch.setattr("signal.signal", interrupted)
    answer = PrintedAnswer()
    answer.print(fake_llama(["one", "two"]).chat([], stream=True), PromptProgress())
    assert (answer.text, answer.last_piece.finish_reason) == ("", "cancelled")
    assert signal.getsignal(signal.SIGINT) is sigint_handler


def test_answer_handler_that_python_did_not_install_becomes_the_default(
    fake_llama, monkeypatch, sigint_handler
):
    monkeypatch.setattr("signal.getsignal", lambda number: None)
    PrintedAnswer().print(fake_llama(["one"]).chat([], stream=True), PromptProgress())
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_answer_off_the_main_thread_is_printed(fake_llama, capsys):
    answer = PrintedAnswer()
    stream = fake_llama(["one", " two"]).chat([], stream=True)
    thread = threading.Thread(target=answer.print, args=(stream, PromptProgress()))
    thread.start()
    thread.join()
    assert answer.text == "one two"
