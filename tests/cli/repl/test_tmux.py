"""A session in a real terminal with the real small model, as a user sees it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tmux import IDLE, Tmux

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

MAIN = "from qllama.cli import main; main()"
# Without its end tokens the model talks until it is stopped.
ENDLESS = ("-l", "2-inf", "-l", "0-inf")
WORDS = "one two three four five six seven eight nine ten eleven twelve "


@pytest.fixture
def chat(smollm2_q8: Path, isolated_home: Path, tmp_path: Path) -> Iterator[Callable[..., Tmux]]:
    """Begin sessions; each waits at its first prompt."""
    opened: list[Tmux] = []

    def begin(*arguments: str, **environment: str) -> Tmux:
        command = (sys.executable, "-c", MAIN, "chat", str(smollm2_q8), "--temp", "0", *arguments)
        # tmux's server has an environment of its own.
        names = ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "QLLAMA_CACHE_DIR", "PYTHONPATH")
        own = {name: os.environ[name] for name in names if name in os.environ}
        terminal = Tmux(tmp_path / f"tmux-{len(opened)}", command, own | environment)
        opened.append(terminal)
        terminal.idle()
        return terminal

    yield begin
    for terminal in opened:
        terminal.close()


def evaluated(shown: str) -> int:
    """Return how many tokens of the last prompt were evaluated, as statistics tell."""
    return int(re.findall(r"prompt eval count: +(\d+) token", shown)[-1])


def context_used(terminal: Tmux) -> int:
    return int(re.findall(r"used +(\d+) tokens", terminal.ask("/show context"))[-1])


def test_tmux_answer_is_drawn_and_the_status_line_tells(chat):
    terminal = chat("-n", "40")
    shown = terminal.ask("What is the capital of France?")
    assert shown.startswith("The capital of France is Paris.")
    # The status line comes when the terminal has told where its cursor is.
    status = re.compile(r"\.qlm · context \d\d/8192 \(\d%\) · \d+\.\d tokens/s$")
    terminal.wait(lambda screen: status.search(screen) is not None)


def test_tmux_pasted_lines_are_one_message_that_enter_sends(chat):
    terminal = chat("-n", "20")
    terminal.paste("What is\nthe capital\nof France?\n")
    screen = terminal.see("... of France?")
    assert ">>> What is\n... the capital\n... of France?" in screen
    # It was not sent: there is still only one message, and it can be edited.
    assert context_used_after_leaving_the_line(terminal) == 0
    terminal.paste("What is\nthe capital\nof France?")
    terminal.see("... of France?")
    terminal.press("Enter")
    assert "Paris" in terminal.idle().rpartition("... of France?\n")[2]


def context_used_after_leaving_the_line(terminal: Tmux) -> int:
    terminal.press("C-c")
    terminal.idle()
    return context_used(terminal)


def test_tmux_quotes_hold_a_message_together(chat):
    terminal = chat("-n", "20")
    terminal.type('"""What is the capital')
    terminal.see("...")
    terminal.type('of France?"""')
    assert "Paris" in terminal.idle().rpartition('of France?"""\n')[2]


def test_tmux_ctrl_c_in_an_answer_keeps_what_was_said(chat, record_property):
    terminal = chat("-n", "4000", *ENDLESS)
    terminal.type("Tell me a long story.")
    terminal.wait(lambda screen: len(screen.rpartition("story.\n")[2].split()) > 20)
    pressed = time.monotonic()
    terminal.press("C-c")
    terminal.idle()
    record_property("seconds_to_the_prompt", time.monotonic() - pressed)
    n_used = context_used(terminal)
    assert 20 < n_used < 4000
    # What was said is held: of the whole story only the new question is evaluated.
    terminal.ask("/set verbose")
    terminal.ask("/set parameter num_predict 5")
    assert evaluated(terminal.ask("Go on.")) < 30
    assert context_used(terminal) > n_used


def test_tmux_ctrl_c_at_a_prompt_clears_the_line_and_says_how_to_leave(chat):
    terminal = chat()
    terminal.press("-l", "half a mess")
    terminal.see(">>> half a mess")
    terminal.press("C-c")
    assert "Use Ctrl + d or /bye to exit." in terminal.idle()
    terminal.press("C-d")
    terminal.see("ended with 0")


def test_tmux_ctrl_c_in_a_long_prompt_stops_at_once(chat, tmp_path, record_property):
    path = tmp_path / "long.txt"
    path.write_text(WORDS * 500)
    terminal = chat("-n", "5", "-v")
    n_tokens = int(re.findall(r"\((\d+) tokens\)", terminal.ask(f"/read {path}"))[-1])
    terminal.type("Sum up.")
    terminal.see("reading the prompt: ")
    pressed = time.monotonic()
    terminal.press("C-c")
    shown = terminal.idle()
    record_property("seconds_to_the_prompt", time.monotonic() - pressed)
    assert "The text of /read goes with your next message." in shown
    assert "eval" not in shown
    assert context_used(terminal) == 0
    # The same again goes on where the first was stopped.
    assert 0 < evaluated(terminal.ask("Sum up.")) < n_tokens


def test_tmux_overflow_forgets_the_oldest_turns_and_says_so(chat):
    terminal = chat("-c", "256", "-n", "60", "-sys", "You are terse.", *ENDLESS)
    for _ in range(3):
        terminal.ask("Tell me a story.")
    shown = terminal.ask("And now?")
    assert "Context window full: forgot the oldest" in terminal.screen()
    assert "the system message stays." in terminal.screen()
    assert "error" not in shown
    assert terminal.ask("/show system").startswith("You are terse.")


def test_tmux_restored_session_goes_on_without_evaluating_it_again(chat, tmp_path):
    path = tmp_path / "talk.session"
    first = chat("-n", "60")
    first.ask("What is the capital of France?")
    first.ask("And what is it famous for?")
    n_used = context_used(first)
    assert f"Saved the session to '{path}' (2 turns, " in first.ask(f"/save {path}")
    answer = first.ask("And of Spain?")
    first.type("/bye")
    first.see("ended with 0")
    second = chat("-n", "60", "-v")
    assert "(2 turns, " in second.ask(f"/restore {path}")
    shown = second.ask("And of Spain?")
    assert evaluated(shown) < 20 < n_used
    said = answer.split("\n\n")[0]
    assert said
    assert shown.startswith(said)


def test_tmux_history_completion_and_editor(chat, tmp_path):
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'What is the capital of France?\\n' > \"$1\"\n")
    editor.chmod(0o755)
    first = chat("-n", "20", EDITOR=str(editor))
    first.press("C-g")
    first.see(">>> What is the capital of France?")
    first.press("Enter")
    assert "Paris" in first.idle()
    assert "Paris" in first.ask("/edit")
    # A command, and what comes after it, by their beginnings.
    first.press("-l", "/sho")
    first.press("Tab")
    first.see(">>> /show")
    first.press("-l", " cont")
    first.press("Tab")
    first.see(">>> /show context")
    first.press("Enter")
    assert "    turns               1" in first.idle()
    first.type("/bye")
    first.see("ended with 0")
    second = chat()
    second.press("Up")
    second.see(">>> /bye")
    second.press("Up")
    second.see(">>> /show context")


def test_tmux_commands_change_the_conversation(chat):
    terminal = chat("-n", "20")
    terminal.ask("What is the capital of France?")
    assert "Paris" in terminal.ask("/regen")
    assert terminal.ask("/undo").startswith("Took back 'What is the capital of France?'")
    assert terminal.ask("/tokens hello world").startswith("2 tokens\n")
    assert terminal.ask("/set system Answer in one word.").startswith("Set system message.")
    assert "Did you mean /clear?" in terminal.ask("/cler")
    assert IDLE in terminal.ask("/clear")


def test_tmux_another_model_refuses_the_session_of_the_first(chat, smollm2_q4, tmp_path):
    terminal = chat("-n", "20")
    terminal.ask("/set parameter top_k 7")
    terminal.ask("What is the capital of France?")
    path = tmp_path / "talk.session"
    terminal.ask(f"/save {path}")
    assert "quantization      q8 (" in terminal.ask("/show info")
    terminal.ask(f"/load {smollm2_q4}")
    assert "quantization      q4 (" in terminal.ask("/show info")
    assert f"error: {path}: " in terminal.ask(f"/restore {path}")
    # And goes on.
    terminal.ask("/set format json")
    assert terminal.ask("Describe the capital of France.").startswith("{")
    assert re.search(r"top_k +40\n", terminal.ask("/show parameters"))
