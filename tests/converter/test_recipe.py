"""Recipes: which tensor gets which weight type."""

from __future__ import annotations

import math

import pytest

from converter.recipe import PRESETS, Recipe, Rule, preset, tensor_type_argument
from qllama.cli.options import WEIGHT_TYPES
from qllama.errors import ConversionError
from qllama.format.spec import TensorSpec, tensor_n_bytes
from qllama.quant import QUANT_TYPES

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
V, DOWN, NORM = ("self_attn.v_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight")


def shapes_of(n_layers=3, *, is_tied=False, rows=96, k=256):
    shapes = {EMBEDDING: (10 * rows, k)}
    for i in range(n_layers):
        layer = {NORM: (k,), V: (rows, k), DOWN: (rows, k)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    if not is_tied:
        shapes[HEAD] = (10 * rows, k)
    return shapes


def bits_per_weight(types, shapes):
    n_bytes = sum(tensor_n_bytes(TensorSpec(n, t, shapes[n])) for n, t in types.items())
    return 8 * n_bytes / sum(map(math.prod, shapes.values()))


def layers_with(types, part, type_name):
    return [int(n.split(".")[2]) for n, t in types.items() if n.endswith(part) and t == type_name]


@pytest.mark.parametrize("name", ["q5", "q6", "q4_0", "q8_0", "f16", "bf16", "f32"])
def test_preset_of_a_type_gives_it_to_every_matrix(name):
    types = preset(name).types(shapes_of())
    assert types.keys() == shapes_of().keys()
    assert {t for n, t in types.items() if not n.endswith("layernorm.weight")} == {name}
    assert {t for n, t in types.items() if n.endswith("layernorm.weight")} == {"f32"}


def test_presets_name_only_known_weight_types():
    rules = [rule for recipe in PRESETS.values() for rule in (*recipe.rules, *recipe.upgrades)]
    assert {rule.type for rule in rules} <= set(QUANT_TYPES)


def test_presets_are_what_the_command_line_offers():
    # A list of its own there: looking at a recipe would load the converter at start-up.
    assert tuple(PRESETS) == WEIGHT_TYPES


def llama(hidden, vocab, n_layers, intermediate, kv_dim, *, is_tied):
    shapes = {EMBEDDING: (vocab, hidden)}
    for i in range(n_layers):
        shapes |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in (
                ("input_layernorm", (hidden,)),
                ("self_attn.q_proj", (hidden, hidden)),
                ("self_attn.k_proj", (kv_dim, hidden)),
                ("self_attn.v_proj", (kv_dim, hidden)),
                ("self_attn.o_proj", (hidden, hidden)),
                ("post_attention_layernorm", (hidden,)),
                ("mlp.gate_proj", (intermediate, hidden)),
                ("mlp.up_proj", (intermediate, hidden)),
                ("mlp.down_proj", (hidden, intermediate)),
            )
        }
    return shapes if is_tied else {**shapes, HEAD: (vocab, hidden)}


@pytest.mark.parametrize(
    ("shapes", "n_v_q6", "n_k_q5"),
    [
        # SmolLM2-135M, whose tied embedding takes nearly all there is; Llama 3.2 1B and 3B.
        (llama(576, 49152, 30, 1536, 192, is_tied=True), 2, 1),
        (llama(2048, 128256, 16, 8192, 512, is_tied=True), 16, 16),
        (llama(3072, 128256, 28, 8192, 1024, is_tied=True), 28, 28),
        # Llama 3 8B, and Llama 2 7B, whose v and k are as large as q.
        (llama(4096, 128256, 32, 14336, 1024, is_tied=False), 32, 32),
        (llama(4096, 32000, 32, 11008, 4096, is_tied=False), 32, 32),
    ],
)
def test_preset_q4_stays_within_its_budget_and_uses_it(shapes, n_v_q6, n_k_q5):
    types = preset("q4").types(shapes)
    assert 4.78 < bits_per_weight(types, shapes) <= 4.8
    of_v = [t for name, t in types.items() if "v_proj" in name]
    assert of_v == ["q6"] * n_v_q6 + ["q5"] * (len(of_v) - n_v_q6)
    assert sum(t == "q5" for name, t in types.items() if "k_proj" in name) == n_k_q5
    assert types.get(HEAD, types[EMBEDDING]) == "q5"
    # An embedding that is only looked up stays at 4 bits.
    assert types[EMBEDDING] == ("q4" if HEAD in shapes else "q5")


def test_preset_name_in_upper_case_is_the_same():
    assert preset("Q4_0") is PRESETS["q4_0"]


def test_preset_unknown_name_lists_those_there_are():
    with pytest.raises(ConversionError, match=r"expected one of q4, q4-small, q8, .*, found 'q3'"):
        preset("q3")


def test_recipe_first_rule_that_matches_counts():
    rules = (Rule("v_proj", "q8_0"), Rule(r"layers\.0\.", "f16"), Rule("", "q4_0"))
    types = Recipe("mix", rules).types(shapes_of(2))
    assert types["model.layers.0." + V] == types["model.layers.1." + V] == "q8_0"
    assert types["model.layers.0." + DOWN] == "f16"
    assert types["model.layers.1." + DOWN] == types[EMBEDDING] == types[HEAD] == "q4_0"


@pytest.mark.parametrize("is_tied", [False, True])
def test_recipe_head_of_a_tied_model_is_its_embedding(is_tied):
    types = Recipe("mix", (Rule("lm_head", "q8_0"), Rule("", "q4"))).types(
        shapes_of(is_tied=is_tied)
    )
    assert types[EMBEDDING] == ("q8_0" if is_tied else "q4")
    assert types.get(HEAD, "q8_0") == "q8_0"


def test_recipe_upgrades_are_taken_in_order_while_they_fit():
    shapes = shapes_of()
    upgrades = (Rule("v_proj", "q8_0"), Rule("down_proj", "q8_0"))
    recipe = Recipe("mix", (Rule("", "q4_0"),), upgrades)
    # Room for four of the six matrices of 4 more bits a weight.
    n_weights = sum(map(math.prod, shapes.values()))
    room = 4.5 * 4 * 96 * 256 / n_weights
    budget = bits_per_weight(recipe.types(shapes), shapes) + room
    types = Recipe("mix", recipe.rules, upgrades, budget).types(shapes)
    assert layers_with(types, V, "q8_0") == [0, 1, 2]
    assert layers_with(types, DOWN, "q8_0") == [0]
    assert bits_per_weight(types, shapes) <= budget


def test_recipe_upgrade_that_does_not_fit_leaves_room_for_the_next():
    shapes = shapes_of()
    upgrades = (Rule("lm_head", "f32"), Rule("lm_head", "q8_0"), Rule("lm_head", "f16"))
    types = Recipe("mix", (Rule("", "q4_0"),), upgrades, 6.5).types(shapes)
    assert types[HEAD] == "q8_0"


def test_recipe_later_upgrades_raise_a_matrix_again_and_never_lower_it():
    upgrades = (Rule("v_proj", "q6"), Rule("v_proj", "q8_0"), Rule("v_proj|down", "q5"))
    types = Recipe("mix", (Rule("", "q4"),), upgrades, 32).types(shapes_of())
    assert layers_with(types, V, "q8_0") == layers_with(types, DOWN, "q5") == [0, 1, 2]


def test_recipe_overrides_come_first_and_are_never_upgraded():
    recipe = Recipe("mix", (Rule("", "q4_0"),), (Rule("", "q8_0"),), 32)
    types = recipe.with_overrides([Rule("v_proj", "q4"), Rule("v|down", "f16")]).types(shapes_of())
    assert layers_with(types, V, "q4") == layers_with(types, DOWN, "f16") == [0, 1, 2]
    assert types[HEAD] == "q8_0"


def test_recipe_overrides_count_in_the_budget():
    shapes = shapes_of()
    recipe = Recipe("mix", (Rule("", "q4_0"),), (Rule("v_proj", "q8_0"),), 5)
    assert layers_with(recipe.types(shapes), V, "q8_0") == [0, 1, 2]
    types = recipe.with_overrides([Rule("lm_head", "f32")]).types(shapes)
    assert layers_with(types, V, "q8_0") == []


@pytest.mark.parametrize("pattern", ["v_prj", "input_layernorm"])
def test_recipe_override_that_fits_no_matrix_is_refused(pattern):
    with pytest.raises(ConversionError, match=rf"--tensor-type {pattern}=q8_0: expected a pattern"):
        preset("q4").with_overrides([Rule(pattern, "q8_0")]).types(shapes_of())


def test_tensor_type_argument_is_split_at_the_last_equals_sign():
    assert tensor_type_argument(r"(?=v)v_proj=Q8_0") == Rule("(?=v)v_proj", "q8_0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v_proj", "expected PATTERN=TYPE"),
        ("=q8_0", "expected PATTERN=TYPE"),
        ("v_proj=q9", "expected one of f32, .*, found 'q9'"),
        ("v_proj=", "expected one of f32, .*, found ''"),
        ("v_(=q8_0", "expected a regular expression before '='"),
    ],
)
def test_tensor_type_argument_that_is_none_is_refused(text, message):
    with pytest.raises(ConversionError, match=message):
        tensor_type_argument(text)
