"""Presets: which tensor gets which weight type."""

from __future__ import annotations

import pytest

from converter.recipe import PRESETS, preset
from qllama.cli.options import WEIGHT_TYPES
from qllama.errors import ConversionError
from qllama.quant import QUANT_TYPES

EMBEDDING = ("model.embed_tokens.weight", (100, 64))
HEAD = ("lm_head.weight", (100, 64))
MATRIX = ("model.layers.0.mlp.up_proj.weight", (96, 64))
NORM = ("model.norm.weight", (64,))


@pytest.mark.parametrize(
    ("name", "matrix", "ends"),
    [
        ("q4", "q4", "q8_0"),
        ("q8", "q8_0", "q8_0"),
        ("q6", "q6", "q6"),
        ("q4_0", "q4_0", "q4_0"),
        ("q8_0", "q8_0", "q8_0"),
        ("f16", "f16", "f16"),
        ("bf16", "bf16", "bf16"),
        ("f32", "f32", "f32"),
    ],
)
def test_preset_gives_each_part_its_type(name, matrix, ends):
    recipe = preset(name)
    assert recipe.name == name
    assert recipe.type_of(*MATRIX) == matrix
    assert recipe.type_of(*EMBEDDING) == ends
    assert recipe.type_of(*HEAD) == ends
    assert recipe.type_of(*NORM) == "f32"


def test_presets_name_only_known_weight_types():
    used = {t for r in PRESETS.values() for t in (r.matrices, r.embedding, r.head)}
    assert used <= set(QUANT_TYPES)


def test_presets_are_what_the_command_line_offers():
    # A list of its own there: looking at a recipe would load the converter at start-up.
    assert tuple(PRESETS) == WEIGHT_TYPES


def test_preset_name_in_upper_case_is_the_same():
    assert preset("Q4_0") is PRESETS["q4_0"]


def test_preset_unknown_name_lists_those_there_are():
    with pytest.raises(ConversionError, match=r"expected one of q4, q8, .*, found 'q3'"):
        preset("q3")
