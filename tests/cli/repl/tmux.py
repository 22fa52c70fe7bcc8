"""A terminal that tests can type into and look at: tmux."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

IDLE = "Send a message (/? for help)"
"""Stands at a prompt that waits, and nowhere else."""


def is_idle(screen: str) -> bool:
    """Whether the last prompt waits."""
    return screen.rpartition(">>> ")[2].startswith(IDLE)


class Tmux:
    """One command in a terminal of its own.

    Parameters
    ----------
    socket : Path
        Of the tmux server, which serves this terminal only.
    command : sequence of str
    environment : mapping
        Added to this process' own.
    """

    def __init__(
        self, socket: Path, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self._socket = socket
        # pytest brings readline, which leaves children a size of its own.
        unset = ("-u", "COLUMNS", "-u", "LINES")
        own = (f"{name}={value}" for name, value in environment.items())
        words = ["env", *unset, *own, *command]
        # What is drawn stays when the command has ended, and the line tells how it did.
        line = f"{shlex.join(words)}; echo ended with $?; sleep 600"
        self._run("-f", "/dev/null", "new-session", "-d", "-x", "150", "-y", "50", line)

    def _run(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def type(self, text: str) -> None:
        """Type `text`, and Enter when it is on the screen."""
        before = self.screen().count(text)
        self._run("send-keys", "-l", text)
        self.wait(lambda screen: screen.count(text) > before and not is_idle(screen))
        self.press("Enter")

    def press(self, *keys: str) -> None:
        """Press `keys`, as tmux names them."""
        self._run("send-keys", *keys)

    def paste(self, text: str) -> None:
        """Paste `text` as terminals do, between the marks of bracketed paste."""
        self._run("set-buffer", text)
        self._run("paste-buffer", "-p")

    def screen(self) -> str:
        """Return what was drawn, what scrolled away too."""
        drawn = self._run("capture-pane", "-p", "-J", "-S", "-2000")
        return "\n".join(line.rstrip() for line in drawn.splitlines()).rstrip()

    def wait(self, until: Callable[[str], bool], seconds: float = 240) -> str:
        """Return the screen as soon as it is as it should be."""
        end = time.monotonic() + seconds
        while not until(screen := self.screen()):
            assert time.monotonic() < end, f"waited in vain; on the screen:\n{screen}"
            time.sleep(0.01)
        return screen

    def see(self, text: str) -> str:
        """Wait for `text` on the screen, and return all of it."""
        return self.wait(lambda screen: text in screen)

    def ask(self, text: str) -> str:
        """Type `text` and return what was shown until the next prompt."""
        self.type(text)
        return self.idle().rpartition(f">>> {text}\n")[2]

    def idle(self) -> str:
        """Wait for a prompt that waits, and return the screen."""
        return self.wait(is_idle)

    def close(self) -> None:
        """End the command and its terminal."""
        self._run("kill-server")
