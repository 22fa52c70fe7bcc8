"""The tree of activations, in terminals and notebooks."""

from __future__ import annotations

from qllama.tracing.tree import Activations, as_html

SHAPES = {
    "embed_tokens.output": ("n_tokens", 8),
    **{f"layers.{i}.{name}": ("n_tokens", 8) for i in range(3) for name in ("input", "mlp.input")},
    "logits": ("n_tokens", 48),
}


def test_activations_show_layers_that_are_alike_once():
    assert repr(Activations(SHAPES)).splitlines() == [
        "<8 activations>",
        "embed_tokens.output  n_tokens x 8",
        "layers.0 to layers.2",
        "  input              n_tokens x 8",
        "  mlp.input          n_tokens x 8",
        "logits               n_tokens x 48",
    ]


def test_activations_show_layers_that_differ_apart():
    some = {name: shape for name, shape in SHAPES.items() if name != "layers.1.input"}
    labels = [line.split("  ")[0] for line in repr(Activations(some)).splitlines()]
    assert [label for label in labels if label.startswith("layers")] == [
        "layers.0",
        "layers.1",
        "layers.2",
    ]


def test_activations_are_a_mapping_of_shapes():
    activations = Activations(SHAPES)
    assert dict(activations) == SHAPES
    assert len(activations) == 8


def test_html_is_escaped_and_has_every_line():
    text = as_html("a <b>", SHAPES)
    assert "a &lt;b&gt;" in text
    assert text.count("<tr>") == 5
