"""The model card: which tables a model's facts become, and how they are worded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qllama.cli.inspection.costs import RunFacts
from qllama.cli.inspection.facts import ModelFacts
from qllama.cli.inspection.modules import ModuleFacts
from qllama.cli.inspection.quality import quality_sections
from qllama.cli.inspection.tables import Section, human_count, human_size, pairs

__all__ = ["ASCII_GUIDES", "LINE_GUIDES", "MARKDOWN_GUIDES", "Guides", "sections"]


@dataclass(frozen=True, slots=True)
class Guides:
    """What the tree is drawn with, before a name.

    Parameters
    ----------
    child, last : str
        Before a module, and before the last of its parent's.
    beside, below : str
        The same for what is in them.
    """

    child: str
    last: str
    beside: str
    below: str


LINE_GUIDES = Guides("├ ", "└ ", "│ ", "  ")
ASCII_GUIDES = Guides("|-", "`-", "| ", "  ")
# Markdown drops leading blanks.
MARKDOWN_GUIDES = Guides("- ", "- ", "&nbsp;&nbsp;", "&nbsp;&nbsp;")


def sections(
    facts: ModelFacts, guides: Guides, *, with_tensors: bool, with_quality: bool = False
) -> list[Section]:
    """Return the tables of a model card.

    Parameters
    ----------
    facts : ModelFacts
    guides : Guides
    with_tensors : bool
        List the tensors too.
    with_quality : bool
        Show what quantizing cost.
    """
    card = [
        pairs("Model", dict(_summary(facts))),
        Section("Problems", ("problem",), tuple((problem,) for problem in facts.problems)),
        _modules(facts, guides),
        _parts(facts),
        _contexts(facts),
        _runs(facts),
        pairs("Hyperparameters", facts.config),
        pairs("Tokenizer", facts.tokenizer),
        pairs("Recipe", facts.recipe),
        pairs("Provenance", facts.provenance),
    ]
    if with_tensors:
        card.append(_tensors(facts))
    return [*card, *quality_sections(facts.tensors)] if with_quality else card


def _summary(facts: ModelFacts) -> Iterator[tuple[str, str]]:
    config, total = facts.config, facts.parts[-1]
    yield "path", facts.path
    yield "format", facts.format
    yield "size", f"{human_size(facts.file_n_bytes)} ({facts.file_n_bytes:,} bytes)"
    yield (
        "parameters",
        f"{facts.parameters:,} ({human_count(facts.parameters)}) at "
        f"{total.bits_per_weight:.2f} bits",
    )
    if facts.parameters_untied != facts.parameters:
        yield "with the head apart", f"{facts.parameters_untied:,}: it is tied to the embedding"
    yield (
        "layers",
        f"{config['num_hidden_layers']}, {config['hidden_size']:,} wide, "
        f"SwiGLU MLP {config['intermediate_size']:,} wide",
    )
    yield "attention", _attention(facts)
    yield "positions", _positions(config)
    yield "vocabulary", f"{config['vocab_size']:,}"
    yield (
        "work per token",
        f"{human_count(facts.macs_per_token)} multiply-adds, "
        f"{human_count(2 * facts.macs_per_token)} FLOPs, attention apart",
    )
    yield (
        "KV cache per token",
        f"{facts.kv_n_bytes_per_token:,} bytes in f16, {facts.kv_q8_n_bytes_per_token:,} in q8_0",
    )


def _attention(facts: ModelFacts) -> str:
    config, repeats = facts.config, facts.query_heads_per_kv_head
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    text = (
        f"{heads} query heads on {kv_heads} KV head{'s' * (kv_heads > 1)} of {config['head_dim']}"
    )
    if repeats > 1:
        text += f", {repeats} on each ({'GQA' if kv_heads > 1 else 'MQA'})"
    biased = [
        name
        for name, key in (("q, k, v", "attention_bias"), ("o", "attention_output_bias"))
        if config[key]
    ]
    if biased:
        text += f", biases on {' and '.join(biased)}"
    if config["qk_norm"]:
        text += ", norms on q and k"
    if config["sliding_window"] is not None:
        text += f", window of {config['sliding_window']:,}"
    return text


def _positions(config: dict[str, Any]) -> str:
    text = f"{config['max_position_embeddings']:,}, RoPE base {config['rope_theta']:,.7g}"
    scaling = config["rope_scaling"]
    if scaling is None:
        return text
    text += f", {scaling['rope_type']} scaling"
    if scaling["rope_type"] == "divisors":
        return text
    text += f" by {scaling['factor']:.7g}"
    original = scaling["original_max_position_embeddings"]
    return text if original is None else f"{text} from {original:,}"


def _modules(facts: ModelFacts, guides: Guides) -> Section:
    rows = tuple(_module_rows(facts.modules, facts.parameters, guides, "", ""))
    columns = ("module", "shape", "parameters", "share", "type")
    return Section("Modules", columns, rows, numbers=("shape", "parameters", "share"))


def _module_rows(
    module: ModuleFacts, total: int, guides: Guides, before: str, below: str
) -> Iterator[tuple[str, ...]]:
    """Rows of a module and all that is in it; `before` stands before its name."""
    shape = "" if module.shape is None else _shape(module.shape)
    folded = not shape and module.count > 1 and module.name.startswith("layers.")
    yield (
        before + module.name,
        f"{module.count} times" if folded else shape + " + bias" * module.has_bias,
        f"{module.parameters:,}",
        _percent(module.count * module.parameters / total),
        # Of a module that only holds others, theirs are shown.
        " ".join(module.types) if shape else "",
    )
    for i, child in enumerate(module.children):
        is_last = i == len(module.children) - 1
        yield from _module_rows(
            child,
            total,
            guides,
            below + (guides.last if is_last else guides.child),
            below + (guides.below if is_last else guides.beside),
        )


def _parts(facts: ModelFacts) -> Section:
    rows = tuple(
        (
            part.name,
            f"{part.parameters:,}",
            _percent(part.share),
            f"{part.parameters_per_layer:,}" if part.parameters_per_layer else "",
            human_size(part.n_bytes),
            f"{part.bits_per_weight:.2f}",
            " ".join(part.types),
        )
        for part in facts.parts
    )
    columns = ("part", "parameters", "share", "a layer", "size", "bits", "types")
    return Section("Weights", columns, rows, numbers=columns[1:6])


def _contexts(facts: ModelFacts) -> Section:
    rows = tuple(
        (
            f"{c.n_ctx:,}",
            human_count(c.macs),
            human_count(c.flops),
            human_size(c.kv_n_bytes),
            human_size(c.kv_q8_n_bytes),
        )
        for c in facts.contexts
    )
    columns = ("context", "multiply-adds", "FLOPs", "KV cache f16", "KV cache q8_0")
    note = "Work for the last token, attention included; memory for the whole context."
    return Section("Context", columns, rows, numbers=columns, note=note)


def _runs(facts: ModelFacts) -> Section:
    columns = ["type", "context", "weights", "KV cache", "buffers", "memory"]
    machine = facts.machine
    note = (
        f"Memory is taken as it is used; {human_size(machine.free_n_bytes)} are free here. "
        "The program takes some 200 MiB more."
    )
    if machine.read_gb_s is not None:
        columns += ["tokens/s", "at end"]
        note += (
            f"\ntokens/s are estimates: {machine.n_threads} threads have just read memory at "
            f"{machine.read_gb_s:.1f} GB/s, {machine.typical_share:.0%} of which is usual."
        )
    title = "To run" if facts.format == "qlm" else "To run, once converted"
    rows = tuple(_run_row(run) for run in facts.runs)
    return Section(title, tuple(columns), rows, numbers=tuple(columns[1:]), note=note)


def _run_row(run: RunFacts) -> tuple[str, ...]:
    sizes = (run.weights_n_bytes, run.kv_n_bytes, run.buffers_n_bytes, run.memory_n_bytes)
    speeds = (run.first_tokens_per_s, run.tokens_per_s)
    return (
        run.storage,
        f"{run.n_ctx:,}",
        *(human_size(n) for n in sizes),
        *(f"{n:.3g}" for n in speeds if n is not None),
    )


def _tensors(facts: ModelFacts) -> Section:
    rows = tuple(
        (t.name, t.type, _shape(t.shape), t.layout or "", f"{t.n_bytes:,}") for t in facts.tensors
    )
    columns = ("name", "type", "shape", "layout", "bytes")
    return Section("Tensors", columns, rows, numbers=("shape", "bytes"))


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(f"{n:,}" for n in shape)


def _percent(share: float) -> str:
    return f"{share:.1%}"
