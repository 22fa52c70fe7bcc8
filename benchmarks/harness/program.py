"""The programs that scripts start, as the beginnings of their command lines."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["LAUNCH", "QLLAMA"]

_HERE = Path(__file__).parent
#: A subcommand of qllama follows.
QLLAMA = (sys.executable, str(_HERE / "run_qllama.py"))
#: The command to watch follows; alone and small, without the modules of a user's site.
LAUNCH = (sys.executable, "-I", "-S", str(_HERE / "launch.py"))
