"""Patterns of names, what hooks may return, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest

from qllama.model.activations import Activation
from qllama.tracing.watch import Watch, matching

NAMES = [
    "embed_tokens.output",
    *(f"layers.{i}.{name}" for i in range(12) for name in ("mlp.output", "output")),
    "logits",
]


def at(name, layer=None):
    return Activation(name, layer, np.arange(3, dtype=np.int32), 0)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("logits", ["logits"]),
        (["logits", "layers.1.output"], ["layers.1.output", "logits"]),
        ("layers.1.*", ["layers.1.output"]),
        ("layers.1.**", ["layers.1.mlp.output", "layers.1.output"]),
        ("layers.*.output", [f"layers.{i}.output" for i in range(12)]),
        ("layers.1?.output", ["layers.10.output", "layers.11.output"]),
        ("layers.[01].mlp.*", ["layers.0.mlp.output", "layers.1.mlp.output"]),
        ("*", ["logits"]),
        ("**", NAMES),
        ([], []),
    ],
)
def test_matching_gives_names_in_the_order_of_the_pass(patterns, expected):
    assert matching(patterns, NAMES) == expected


def test_matching_nothing_names_the_nearest():
    with pytest.raises(ValueError, match=r"'layers.1.mlp' matches no activation .*layers\.1\."):
        matching("layers.1.mlp", NAMES)
    with pytest.raises(ValueError, match=r"llm\.activations\(\) lists them"):
        matching("???", NAMES)
    with pytest.raises(ValueError, match=r"'layers\?3\?output' matches no activation"):
        matching("layers?3?output", NAMES)  # dots are no characters like others
    with pytest.raises(ValueError, match=r"'layers\.\[9-1\]' is no pattern"):
        matching("layers.[9-1]", NAMES)


def test_watch_wants_what_is_kept_or_hooked_and_no_more():
    watch = Watch(NAMES, [{"layers.3.**": lambda x, at: None}], ["logits"])
    assert watch.observer.names == {"layers.3.mlp.output", "layers.3.output", "logits"}


def test_watch_hooks_follow_each_other_and_what_they_leave_is_kept():
    def in_place(x, at):
        x[0] = 7

    hooks = [
        {"logits": lambda x, at: x + 1},
        {"log*": in_place, "*its": lambda x, at: (2 * x).tolist()},
    ]
    watch = Watch(NAMES, hooks, ["logits"])
    left = watch.observer.visit(at("logits"), np.zeros(3, np.float32))
    np.testing.assert_array_equal(left, np.array([14, 2, 2], np.float32))
    np.testing.assert_array_equal(watch.kept["logits"], left)
    assert left.dtype == np.float32


def test_watch_that_only_keeps_changes_nothing():
    watch = Watch(NAMES, [], ["logits"])
    assert watch.observer.visit(at("logits"), np.ones(3, np.float32)) is None
    np.testing.assert_array_equal(watch.kept["logits"], [1, 1, 1])


def test_watch_hook_of_another_shape_is_refused_by_name():
    watch = Watch(NAMES, [{"logits": lambda x, at: x[:2]}])
    with pytest.raises(ValueError, match=r"hook of logits: expected .* \(3,\), found \(2,\)"):
        watch.observer.visit(at("logits"), np.zeros(3, np.float32))


def test_watch_what_a_hook_returned_is_copied():
    kept = np.zeros(3, np.float32)
    watch = Watch(NAMES, [{"logits": lambda x, at: kept}], ["logits"])
    watch.observer.visit(at("logits"), np.ones(3, np.float32))
    kept[:] = 5
    np.testing.assert_array_equal(watch.kept["logits"], [0, 0, 0])
