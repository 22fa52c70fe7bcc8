"""qllama as a program to start."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["QLLAMA"]

#: The command line that a subcommand of qllama follows.
QLLAMA = (sys.executable, str(Path(__file__).with_name("run_qllama.py")))
