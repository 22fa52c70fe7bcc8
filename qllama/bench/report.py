"""Results as one JSON document, and that document as Markdown or CSV.

`schema` in the document counts up when a key changes its meaning or goes away.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from qllama.bench import markdown
from qllama.bench.environment import environment
from qllama.bench.results import Results, Row

__all__ = ["SCHEMA", "as_csv", "as_document", "as_markdown"]

SCHEMA = 1

_COLUMNS = ["model", "size", "params", "backend", "threads", "test", "t/s", "GB/s", "GOP/s"]
_TEXT_COLUMNS = {"model", "backend"}


def as_document(results: Results) -> dict[str, Any]:
    """Return the results as plain JSON values: where, the limits, a row a test."""
    limits = [limits for limits in results.limits.values() if limits.n_samples]
    reads = {limits.n_threads: limits.best_read for limits in limits}
    read: dict[str, dict[str, Any]] = {
        str(n): {"median": statistics.median(samples), "method": method, "samples": samples}
        for n, (method, samples) in reads.items()
    }
    dot4 = {str(each.n_threads): _summary(each.dot4_gop_s) for each in limits}
    weights: dict[str, dict[str, Any]] = {}
    for (name, n_threads), samples in results.weights_gb_s.items():
        weights.setdefault(name, {})[str(n_threads)] = _summary(samples)
    here = environment()
    rows = []
    for row in results.rows:
        n = str(row.n_threads)
        rows.append(_row(row, f"CPU {here['isa']}", read[n]["median"], dot4[n]["median"]))
    return {
        "schema": SCHEMA,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **here,
        "is_complete": results.is_complete,
        "limits": {"read_gb_s": read, "dot4_gop_s": dot4, "weights_gb_s": weights},
        "rows": rows,
    }


def _summary(samples: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(samples), "samples": list(samples)}


def _row(row: Row, backend: str, read_limit: float, dot4_limit: float) -> dict[str, Any]:
    read = row.read_gb_s
    return {
        "model": row.model.name,
        "path": row.model.path,
        "size_bytes": row.counts.n_bytes,
        "n_params": row.counts.n_params,
        "backend": backend,
        "threads": row.n_threads,
        "n_batch": row.n_batch,
        "kv_type": row.kv_type,
        "use_mmap": row.use_mmap,
        "test": row.test.name,
        "n_prompt": row.test.n_prompt,
        "n_gen": row.test.n_gen,
        "depth": row.test.depth,
        "n_parallel": row.test.n_parallel,
        "samples_ts": row.samples,
        "mean_ts": row.mean,
        "stddev_ts": row.deviation,
        "gb_s": read,
        "read_share": None if read is None else read / read_limit,
        "gop_s": row.gop_s,
        "dot4_share": row.gop_s / dot4_limit,
    }


def as_csv(document: dict[str, Any]) -> str:
    """Return the rows of `document` as CSV with a header line.

    Each line also carries what the document says of all rows: the medians of the limits,
    the machine and the versions. The samples stand in one field, separated by spaces.
    """
    git = document["git"] or {}
    common = {
        **{key: value for key, value in document.items() if not isinstance(value, (dict, list))},
        "git_revision": git.get("revision"),
        "git_is_dirty": git.get("is_dirty"),
    }
    common.pop("git", None)
    lines = []
    for row in document["rows"]:
        n, limits = str(row["threads"]), document["limits"]
        lines.append(
            row
            | {"samples_ts": " ".join(str(sample) for sample in row["samples_ts"])}
            | {
                "read_limit_gb_s": limits["read_gb_s"][n]["median"],
                "weights_limit_gb_s": limits["weights_gb_s"][row["model"]][n]["median"],
                "dot4_limit_gop_s": limits["dot4_gop_s"][n]["median"],
            }
            | common
        )
    text = io.StringIO()
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()


def as_markdown(document: dict[str, Any]) -> str:
    """Return the rows of `document` as a table in llama-bench's columns, and the limits."""
    table = markdown.table(_COLUMNS, [_cells(row) for row in document["rows"]], _TEXT_COLUMNS)
    return "\n".join([table, *_remarks(document), ""])


def _cells(row: dict[str, Any]) -> list[str]:
    gb_s = gop_s = ""
    if row["gb_s"] is not None:
        gb_s = f"{row['gb_s']:.1f} ({row['read_share']:.0%})"
    # Of a lone token's dot products memory is the limit: the share would say nothing.
    if row["n_prompt"] or row["n_parallel"] > 1:
        gop_s = f"{row['gop_s']:.0f} ({row['dot4_share']:.0%})"
    return [
        row["model"],
        _size(row["size_bytes"]),
        _count(row["n_params"]),
        row["backend"],
        str(row["threads"]),
        row["test"],
        f"{row['mean_ts']:.2f} ± {row['stddev_ts']:.2f}",
        gb_s,
        gop_s,
    ]


def _size(n_bytes: int) -> str:
    n_gib = n_bytes / 2**30
    return f"{n_gib:.2f} GiB" if n_gib >= 1 else f"{n_bytes / 2**20:.2f} MiB"


def _count(n_params: int) -> str:
    return f"{n_params / 1e9:.2f} B" if n_params >= 1e9 else f"{n_params / 1e6:.2f} M"


def _remarks(document: dict[str, Any]) -> Iterator[str]:
    """Lines under the table: what 100% is, and where it was measured."""
    limits = document["limits"]
    for n, read in limits["read_gb_s"].items():
        dot4 = limits["dot4_gop_s"][n]["median"]
        yield (
            f"100% with {n} thread(s): {read['median']:.1f} GB/s read ({read['method']}), "
            f"{dot4:.0f} GOP/s of dot4"
        )
        for model, by_threads in limits["weights_gb_s"].items():
            if n in by_threads:
                gb_s = by_threads[n]["median"]
                yield f"{model}, its weights read where they lie: {gb_s:.1f} GB/s"
    kv_types = {row["kv_type"] for row in document["rows"]} - {"f16"}
    yield from (f"keys and values held in {kv_type}" for kv_type in sorted(kv_types))
    if not all(row["use_mmap"] for row in document["rows"]):
        yield "weights read into memory, not mapped"
    git = document["git"]
    revision = f" ({git['revision'][:9]}{', changed' * git['is_dirty']})" if git else ""
    yield f"qllama {document['qllama']}{revision} on {document['cpu']}"
