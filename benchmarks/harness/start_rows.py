"""What startup.py measures, as a table."""

from __future__ import annotations

import statistics
from typing import Any

from qllama.bench.markdown import table

__all__ = ["startup_table"]


def startup_table(starts: dict[str, list[dict[str, Any]]], opens: dict[str, list[float]]) -> str:
    """Tabulate medians.

    Parameters
    ----------
    starts : dict of str to list of dict
        What `launch.py` printed, by name.
    opens : dict of str to list of float
        Seconds to open the model's file.
    """
    rows = []
    for name, samples in starts.items():
        median = {key: statistics.median(s[key] for s in samples) for key in samples[0]}
        open_ms = f"{1000 * statistics.median(opens[name]):.1f}" if name in opens else ""
        first, peak = median["seconds_to_output"], median["peak_rss_bytes"]
        rows.append(
            [name, f"{first:.2f}", f"{median['seconds']:.2f}", f"{peak / 2**20:.0f}", open_ms]
        )
    header = ["start", "first token, s", "whole process, s", "peak RSS, MiB", "open, ms"]
    return table(header, rows, words={"start"})
