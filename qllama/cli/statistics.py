"""Timings of an answer under ollama's labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qllama.generation.results import Timings

__all__ = ["statistics_table"]


def duration(seconds: float) -> str:
    """Return `seconds` in the unit that suits them: `1.204s`, `38.5ms`."""
    return f"{seconds:.3f}s" if seconds >= 1 else f"{1000 * seconds:.1f}ms"


def statistics_table(timings: Timings) -> str:
    """Return `timings` as lines of label and value.

    The prompt counts as far as it was evaluated: what the KV cache already held
    took no time and would make the rate meaningless.
    """
    rows = [
        ("total duration", duration(timings.total_seconds)),
        ("load duration", duration(timings.load_seconds)),
        ("prompt eval count", f"{timings.evaluated_tokens} token(s)"),
        ("prompt eval duration", duration(timings.prompt_seconds)),
        ("prompt eval rate", f"{timings.prompt_rate:.2f} tokens/s"),
        ("eval count", f"{timings.completion_tokens} token(s)"),
        ("eval duration", duration(timings.completion_seconds)),
        ("eval rate", f"{timings.completion_rate:.2f} tokens/s"),
    ]
    if timings.guessed_tokens:
        counts = f"{timings.accepted_tokens} of {timings.guessed_tokens} guessed token(s)"
        rows.append(("draft acceptance", f"{timings.acceptance:.2f} ({counts})"))
    return "\n".join(f"{label + ':':<22}{value}" for label, value in rows)
