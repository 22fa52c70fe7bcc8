"""Where qllama keeps files of its own: one cache directory a user."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """Root of the user's cache; `QLLAMA_CACHE_DIR` overrides. Not created here."""
    override = os.environ.get("QLLAMA_CACHE_DIR")
    return Path(override) if override else Path(platformdirs.user_cache_dir("qllama"))
