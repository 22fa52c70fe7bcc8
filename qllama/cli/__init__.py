"""The `qllama` command line: argument parsing, progress, the chat prompt.

Owns everything a terminal user sees. Computes nothing itself: commands call
`qllama.api`, `qllama.hub`, `qllama.format` and `converter`, and import them only
when they run, so that `qllama --help` stays instant.
"""

from __future__ import annotations

from qllama.cli.group import cli, main

__all__ = ["cli", "main"]
