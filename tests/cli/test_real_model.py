"""The chat with SmolLM2 itself behind it, down to the compiled kernels."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from qllama.cli.repl.chat import Chat, OpenedModel
from qllama.cli.repl.loop import talk
from qllama.cli.repl.screen import PlainScreen

MAIN = "from qllama.cli import main; main()"
# Without its end tokens the model talks until it is stopped, by the limit if not by the test.
ENDLESS = "-n 400 --temp 0 -c 2048 -l 2-inf -l 0-inf"
# A word on the line below what was typed.
ANSWERING = r"\n[^>]*[a-z]{4}"
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def llm(smollm2_q8):
    from qllama import Llama

    with Llama(smollm2_q8, n_ctx=512) as model:
        yield model


@pytest.mark.parametrize("model", ["smollm2_q4", "smollm2_q8"])
def test_chat_command_of_the_default_model_answers_rightly(request, model):
    path = request.getfixturevalue(model)
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "chat", path, "-s", "1", "-p", QUESTION],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The capital of France is Paris.")
    assert "error" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_chat_command_interrupted_exits_130(smollm2_q8):
    command = [sys.executable, "-c", MAIN, "chat", smollm2_q8, *ENDLESS.split(), "-p", QUESTION]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.endswith(b"qllama: error: interrupted\n")


def test_talk_second_turn_evaluates_only_new_tokens(llm, capsys):
    lines = iter(["Count from one to twenty, please.", "And now?"])

    def read_line(prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    opened = OpenedModel("smollm2", llm, None, {"max_tokens": 40, "temperature": 0})
    talk(Chat(opened, open_model, PlainScreen(), verbose=True), read_line)
    evaluated = re.findall(r"prompt eval count: +(\d+) token", capsys.readouterr().err)
    new = "<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    # One more: the last token of the first answer was chosen, but never evaluated.
    assert int(evaluated[1]) <= len(llm.tokenize(new, special=True)) + 1


def open_model(name, n_ctx):
    raise AssertionError("no other model is asked for")


def test_terminal_ctrl_c_stops_the_engine_and_the_next_turn_works(smollm2_q8, isolated_home):
    pexpect = pytest.importorskip("pexpect")
    environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": "1"}
    chat = pexpect.spawn(
        sys.executable,
        ["-c", MAIN, "chat", str(smollm2_q8), *ENDLESS.split()],
        env=environment,
        encoding="utf-8",
        timeout=300,
    )
    chat.expect_exact(">>>")
    chat.send("Tell me a long story.\r")
    chat.expect(ANSWERING)
    chat.send("\x03")
    chat.expect_exact(">>>")
    chat.send("Go on.\r")
    chat.expect(ANSWERING)
    chat.send("\x03")
    chat.expect_exact(">>>")
    chat.send("/bye\r")
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0
