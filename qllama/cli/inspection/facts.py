"""The facts of one model, gathered into a record that is plain JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qllama.cli.inspection.costs import (
    ContextFacts,
    MachineFacts,
    RunFacts,
    all_run_facts,
    context_facts,
    kv_n_bytes_per_token,
)
from qllama.cli.inspection.modules import ModuleFacts, module_tree
from qllama.cli.inspection.subject import Subject, TensorFacts
from qllama.tensors import EMBEDDING

__all__ = ["PARTS", "ModelFacts", "PartFacts", "gather_facts"]

PARTS = ("embeddings", "attention", "MLP", "norms", "head", "other")

_FIRST_LAYER = "model.layers.0."


@dataclass(frozen=True, slots=True)
class PartFacts:
    """What one part of the network, or all of it, amounts to.

    Parameters
    ----------
    name : str
        One of `PARTS`, or `total`.
    parameters, n_bytes : int
        Weights, and the bytes they take as they are stored, with their padding.
    parameters_per_layer : int
        In the first layer.
    share : float
        Of all parameters, 0 to 1.
    bits_per_weight : float
        8 n_bytes / parameters.
    types : tuple of str
        Weight types in it.
    """

    name: str
    parameters: int
    parameters_per_layer: int
    share: float
    n_bytes: int
    bits_per_weight: float
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Everything that `qllama inspect` can show of a model.

    Parameters
    ----------
    path, format, config, tokenizer, recipe, provenance, problems
        As in `Subject`, as JSON values.
    file_n_bytes : int
        Of the file, or of the files of a checkpoint.
    parameters : int
        Of all tensors, a tied embedding once.
    parameters_untied : int
        The same with the output head counted apart.
    query_heads_per_kv_head : int
    kv_n_bytes_per_token, kv_q8_n_bytes_per_token : int
        What one token of context takes in the cache, of either type.
    macs_per_token : int
        Multiply-adds of the matrices for one token with its logits; attention, which grows
        with the context, is in `contexts`.
    parts : tuple of PartFacts
        The parts that the model has; the last is the total.
    modules : ModuleFacts
        The root of the tree.
    machine : MachineFacts
    contexts : tuple of ContextFacts
    runs : tuple of RunFacts
        Every way to run the model with each of the contexts.
    tensors : tuple of TensorFacts
        As they are stored, in the order of the forward pass.
    """

    path: str
    format: str
    file_n_bytes: int
    parameters: int
    parameters_untied: int
    query_heads_per_kv_head: int
    kv_n_bytes_per_token: int
    kv_q8_n_bytes_per_token: int
    macs_per_token: int
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    problems: tuple[str, ...]
    parts: tuple[PartFacts, ...]
    modules: ModuleFacts
    machine: MachineFacts
    contexts: tuple[ContextFacts, ...]
    runs: tuple[RunFacts, ...]
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


def _sum(name: str, tensors: Iterable[TensorFacts], total: int) -> PartFacts:
    tensors = list(tensors)
    parameters = sum(t.parameters for t in tensors)
    n_bytes = sum(t.n_bytes for t in tensors)
    return PartFacts(
        name=name,
        parameters=parameters,
        parameters_per_layer=sum(t.parameters for t in tensors if t.name.startswith(_FIRST_LAYER)),
        share=parameters / total,
        n_bytes=n_bytes,
        bits_per_weight=8 * n_bytes / parameters if parameters else 0.0,
        types=tuple(sorted({t.type for t in tensors})),
    )


def gather_facts(
    subject: Subject,
    contexts: Sequence[int],
    *,
    machine: MachineFacts,
    expand: bool = False,
) -> ModelFacts:
    """Draw the facts from a model.

    Parameters
    ----------
    subject : Subject
    contexts : sequence of int
        Lengths of context, as `chosen_contexts` gives them.
    machine : MachineFacts
    expand : bool
        As `module_tree` takes it.
    """
    config, tensors = subject.config, subject.tensors
    total = sum(t.parameters for t in tensors)
    parts = [_sum(part, (t for t in tensors if part_of(t.name) == part), total) for part in PARTS]
    embedding = sum(t.parameters for t in tensors if t.name == EMBEDDING)
    by_context = tuple(
        context_facts(config, storage, n_ctx)
        for storage in subject.storages[:1]
        for n_ctx in contexts
    )
    return ModelFacts(
        path=subject.path,
        format=subject.format,
        file_n_bytes=subject.n_bytes,
        parameters=total,
        parameters_untied=total + embedding * config.tie_word_embeddings,
        query_heads_per_kv_head=config.num_attention_heads // config.num_key_value_heads,
        kv_n_bytes_per_token=kv_n_bytes_per_token(config, "f16"),
        kv_q8_n_bytes_per_token=kv_n_bytes_per_token(config, "q8"),
        macs_per_token=sum(
            t.parameters
            for t in tensors
            if len(t.shape) == 2 and (t.name != EMBEDDING or config.tie_word_embeddings)
        ),
        config=config.to_dict(),
        tokenizer=subject.tokenizer,
        recipe=subject.recipe,
        provenance=subject.provenance,
        problems=subject.problems,
        parts=(*(part for part in parts if part.parameters), _sum("total", tensors, total)),
        modules=module_tree(config.model_type, tensors, expand=expand),
        machine=machine,
        contexts=by_context,
        runs=all_run_facts(config, subject.storages, contexts, machine),
        tensors=tensors,
    )
