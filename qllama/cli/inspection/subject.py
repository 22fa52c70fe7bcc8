"""What is inspected, a `.qlm` file or a checkpoint, as one record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qllama.config import ModelConfig, TokenizerConfig
from qllama.errors import QllamaError
from qllama.format.reader import QlmFile
from qllama.format.spec import TensorSpec, tensor_n_bytes
from qllama.tensors import ROPE_DIVISORS, differences, expected_shapes

if TYPE_CHECKING:
    from converter.recipe import Recipe
    from converter.sources.base import CheckpointSource

__all__ = ["Storage", "Subject", "TensorFacts", "subject_of_checkpoint", "subject_of_file"]

# What a checkpoint is shown as once it is converted.
_PRESETS = ("q4", "q8", "f16")


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One row of the tensor table.

    Parameters
    ----------
    name : str
        Hugging Face's.
    type : str
        qllama's in a `.qlm` file; in a checkpoint its own.
    n_bytes : int
        As it is stored.
    layout : str or None
    offset : int or None
    quality : dict or None
        As a `.qlm` file has them; None in a checkpoint.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    layout: str | None = None
    offset: int | None = None
    quality: dict[str, Any] | None = None

    @property
    def parameters(self) -> int:
        """Number of weights, without padding; a table of RoPE divisors has none."""
        return 0 if self.name == ROPE_DIVISORS else math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Storage:
    """A way in which the model runs.

    Parameters
    ----------
    name : str
        The preset's.
    tensors : tuple of TensorFacts
        In qllama's types.
    """

    name: str
    tensors: tuple[TensorFacts, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, whatever it lies in.

    Parameters
    ----------
    path : str
        The file, or the directory.
    format : str
        `qlm`, or the checkpoint format's name.
    n_bytes : int
        Of the file, or of the files that hold a checkpoint's weights.
    config : ModelConfig
    tokenizer : dict
        The tokenizer's record, of the chat template only its length; or a `problem`.
    recipe, provenance : dict
        As a `.qlm` file has them; a checkpoint has no recipe.
    tensors : tuple of TensorFacts
        As they are stored.
    storages : tuple of Storage
        What can be run: the `.qlm` file itself, or what a checkpoint would become.
    problems : tuple of str
        Why the model cannot be run; there are no storages then.
    """

    path: str
    format: str
    n_bytes: int
    config: ModelConfig
    tokenizer: dict[str, Any]
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    tensors: tuple[TensorFacts, ...]
    storages: tuple[Storage, ...]
    problems: tuple[str, ...] = ()


def subject_of_file(file: QlmFile) -> Subject:
    """Describe a `.qlm` file; reads its header only.

    Parameters
    ----------
    file : QlmFile
    """
    tensors = tuple(
        TensorFacts(t.name, t.type, tuple(t.shape), t.n_bytes, t.layout, t.offset, t.quality)
        for t in file.tensors.values()
    )
    shapes = {t.name: t.shape for t in tensors}
    problems = tuple(differences(expected_shapes(file.config), shapes))
    name = str(file.recipe.get("name", "stored"))
    return Subject(
        path=str(file.path),
        format="qlm",
        n_bytes=file.path.stat().st_size,
        config=file.config,
        tokenizer=_tokenizer_facts(file.tokenizer, file.tokenizer_n_bytes),
        recipe=dict(file.recipe),
        provenance=dict(file.provenance),
        tensors=tensors,
        storages=() if problems else (Storage(name, tensors),),
        problems=problems,
    )


def subject_of_checkpoint(path: Path, source: CheckpointSource) -> Subject:
    """Describe a checkpoint; reads no weights.

    Parameters
    ----------
    path : Path
    source : CheckpointSource
        Open from `path`.
    """
    from converter.recipe import preset

    tensors = tuple(
        TensorFacts(name, t.source_type, t.shape, t.n_bytes) for name, t in source.tensors.items()
    )
    try:
        record, blob = source.tokenizer
        tokenizer = _tokenizer_facts(record, len(blob))
    except QllamaError as e:
        tokenizer = {"problem": str(e)}
    provenance = dict(source.provenance)
    return Subject(
        path=str(path),
        format=str(provenance.get("format", "checkpoint")),
        n_bytes=sum(file.stat().st_size for file in source.files),
        config=source.config,
        tokenizer=tokenizer,
        recipe={},
        provenance={"files": [file.name for file in source.files], **provenance},
        tensors=tensors,
        storages=tuple(Storage(name, _stored(tensors, preset(name))) for name in _PRESETS),
    )


def _tokenizer_facts(record: TokenizerConfig, blob_n_bytes: int) -> dict[str, Any]:
    facts = record.to_dict()
    template = facts.pop("chat_template")
    facts["chat_template_length"] = None if template is None else len(template)
    return {"blob_n_bytes": blob_n_bytes, **facts}


def _stored(tensors: tuple[TensorFacts, ...], recipe: Recipe) -> tuple[TensorFacts, ...]:
    """`tensors` as `recipe` would store them."""
    types = recipe.types({t.name: t.shape for t in tensors})
    specs = [TensorSpec(t.name, types[t.name], t.shape) for t in tensors]
    return tuple(TensorFacts(s.name, s.type, s.shape, tensor_n_bytes(s)) for s in specs)
