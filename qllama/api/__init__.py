"""`Llama`, the Python face of qllama, and what stands directly behind it."""

from __future__ import annotations

from qllama.api.llama import Llama

__all__ = ["Llama"]
