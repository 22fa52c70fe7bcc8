"""The facts of one model file, gathered into a record that is plain JSON values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qllama.format.reader import QlmFile
from qllama.format.spec import TensorInfo

__all__ = ["ModelFacts", "PartFacts", "TensorFacts", "gather_facts"]

PARTS = ("embeddings", "attention", "MLP", "norms", "head", "other")

# The KV cache holds keys and values as 16-bit floats.
KV_BYTES_PER_VALUE = 2


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One row of the tensor table."""

    name: str
    type: str
    shape: tuple[int, ...]
    layout: str
    offset: int
    n_bytes: int

    @property
    def parameters(self) -> int:
        """Number of weights, without padding."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class PartFacts:
    """What one part of the network, or all of it, amounts to.

    Parameters
    ----------
    name : str
        One of `PARTS`, or `total`.
    parameters, n_bytes : int
        Weights, and the bytes they take in the file with their padding.
    bits_per_weight : float
        8 n_bytes / parameters.
    types : tuple of str
        Weight types in it.
    """

    name: str
    parameters: int
    n_bytes: int
    bits_per_weight: float
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Everything that `qllama inspect` can show of a file.

    Parameters
    ----------
    path : str
        The file.
    file_n_bytes : int
        Its size.
    kv_n_bytes_per_token : int
        What one token of context takes in the KV cache.
    config, tokenizer, recipe, provenance : dict
        As the file's header has them; of the chat template only its length.
    parts : tuple of PartFacts
        The parts that the model has; the last is the total.
    tensors : tuple of TensorFacts
        In file order.
    """

    path: str
    file_n_bytes: int
    kv_n_bytes_per_token: int
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    parts: tuple[PartFacts, ...]
    tensors: tuple[TensorFacts, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one key a field."""
        return dataclasses.asdict(self)


def part_of(tensor_name: str) -> str:
    """Return which of `PARTS` the tensor of the Hugging Face name `tensor_name` belongs to."""
    for fragment, part in (
        ("norm.", "norms"),
        ("embed_tokens.", "embeddings"),
        ("lm_head.", "head"),
        (".self_attn.", "attention"),
        (".mlp.", "MLP"),
    ):
        if fragment in tensor_name:
            return part
    return "other"


def _sum(name: str, tensors: Iterable[TensorFacts]) -> PartFacts:
    tensors = list(tensors)
    parameters = sum(t.parameters for t in tensors)
    n_bytes = sum(t.n_bytes for t in tensors)
    return PartFacts(
        name=name,
        parameters=parameters,
        n_bytes=n_bytes,
        bits_per_weight=8 * n_bytes / parameters if parameters else 0.0,
        types=tuple(sorted({t.type for t in tensors})),
    )


def _tensor_facts(info: TensorInfo) -> TensorFacts:
    return TensorFacts(
        name=info.name,
        type=info.type,
        shape=tuple(info.shape),
        layout=info.layout,
        offset=info.offset,
        n_bytes=info.n_bytes,
    )


def gather_facts(file: QlmFile) -> ModelFacts:
    """Return the facts of `file`; reads its header only."""
    config = file.config
    tensors = tuple(_tensor_facts(info) for info in file.tensors.values())
    parts = [_sum(part, (t for t in tensors if part_of(t.name) == part)) for part in PARTS]
    tokenizer = file.tokenizer.to_dict()
    template = tokenizer.pop("chat_template")
    tokenizer["chat_template_length"] = None if template is None else len(template)
    return ModelFacts(
        path=str(file.path),
        file_n_bytes=file.path.stat().st_size,
        kv_n_bytes_per_token=(2 * config.num_hidden_layers * config.kv_dim * KV_BYTES_PER_VALUE),
        config=config.to_dict(),
        tokenizer={"blob_n_bytes": file.tokenizer_n_bytes, **tokenizer},
        recipe=dict(file.recipe),
        provenance=dict(file.provenance),
        parts=(*(part for part in parts if part.parameters), _sum("total", tensors)),
        tensors=tensors,
    )
