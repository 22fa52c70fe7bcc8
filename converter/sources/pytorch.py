"""Hugging Face repositories with PyTorch files as a checkpoint source.

Owns the way from a path to the tensors of its shards.
"""

from __future__ import annotations

from pathlib import Path

from converter.sources.base import OpenedSource
from converter.sources.hf_repository import open_repository
from converter.sources.options import SourceOptions
from converter.sources.shards import joined, weight_files
from converter.sources.torch_file import read_torch_file

__all__ = ["open_checkpoint"]


def open_checkpoint(path: Path, options: SourceOptions) -> OpenedSource:
    """Open a directory, an index or one file.

    Parameters
    ----------
    path : Path
        Of `pytorch_model.bin`, of `pytorch_model.bin.index.json`, or of their directory.
    options : SourceOptions
        See `hf_repository.open_repository`.

    Raises
    ------
    ConversionError
        When files are missing, damaged, hold anything but tensors, or do not fit together.
    UnsupportedModelError
        When the model needs what qllama does not compute.
    """
    found = weight_files(path, "pytorch_model.bin")
    raw = joined(path, found, [read_torch_file(file) for file in found.files])
    return open_repository("pytorch", found.directory, found.files, raw, options)
