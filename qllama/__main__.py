"""`python -m qllama`, for where the `qllama` script is not on the PATH."""

from __future__ import annotations

from qllama.cli import main

if __name__ == "__main__":
    main()
