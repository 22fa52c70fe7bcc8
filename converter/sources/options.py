"""What a user says about a checkpoint because its files do not, or say it wrongly.

Owns the record. Knows no format.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SourceOptions"]


@dataclass(frozen=True)
class SourceOptions:
    """Answers that replace what a source would find out for itself; None leaves it to it.

    Parameters
    ----------
    format : str or None
        A name in `registry.FORMATS`.
    config : Path or None
        File with the hyperparameters, in place of the checkpoint's own.
    tokenizer : Path or None
        File or directory with the tokenizer, in place of the checkpoint's own.
    rope_layout : str or None
        Row order of q and k in checkpoints that do not tell it.
    fused_layout : str or None
        Row order of fused matrices in checkpoints that do not tell it.
    """

    format: str | None = None
    config: Path | None = None
    tokenizer: Path | None = None
    rope_layout: str | None = None
    fused_layout: str | None = None
