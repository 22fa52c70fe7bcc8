"""Hugging Face repositories with safetensors files as a checkpoint source.

Owns the way from a path to the tensors of its shards. MindFormers writes the same files
with names of its own; those it leaves to `mindspore`.
"""

from __future__ import annotations

from pathlib import Path

from converter.sources import mindspore
from converter.sources.base import CheckpointSource
from converter.sources.hf_repository import open_repository
from converter.sources.options import SourceOptions
from converter.sources.safetensors_file import safetensors_arrays
from converter.sources.shards import joined, weight_files

__all__ = ["open_checkpoint"]

_OF_MINDFORMERS = ("tok_embeddings.embedding_weight", "model.tok_embeddings.weight")


def open_checkpoint(path: Path, options: SourceOptions) -> CheckpointSource:
    """Open a directory, an index or one file.

    Parameters
    ----------
    path : Path
        Of `model.safetensors`, of `model.safetensors.index.json`, or of their directory.
    options : SourceOptions
        See `hf_repository.open_repository`.

    Raises
    ------
    ConversionError
        When files are missing, damaged or do not fit together.
    UnsupportedModelError
        When the model needs what qllama does not compute.
    """
    found = weight_files(path, "model.safetensors")
    raw = joined(path, found, [safetensors_arrays(file) for file in found.files])
    if any(name.endswith(_OF_MINDFORMERS) for name in raw):
        return mindspore.open_checkpoint(path, options)
    return open_repository("huggingface", found.directory, found.files, raw, options)
