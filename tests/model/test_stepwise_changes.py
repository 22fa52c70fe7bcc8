"""What an observer changes is what the model goes on with: models of other weights tell.

Doubling an activation and doubling the weights that it is a product of are the same to the
bit, and so are a zero and weights of zero.
"""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import config, random_tensors, write_model

from qllama.format import QlmFile
from qllama.kernels.kv_layout import KV_TYPES
from qllama.model.activations import Observer, activation_shapes
from qllama.model.engine import Engine

LAYER = "model.layers.1."
# Activation of layer 1, and the weights of which it is the product.
PRODUCTS = {
    "layers.1.self_attn.input": ["input_layernorm.weight"],
    "layers.1.self_attn.q_proj.output": ["self_attn.q_proj.weight"],
    "layers.1.self_attn.k_proj.output": ["self_attn.k_proj.weight"],
    "layers.1.self_attn.v_proj.output": ["self_attn.v_proj.weight"],
    "layers.1.self_attn.q": ["self_attn.q_proj.weight"],
    "layers.1.self_attn.k": ["self_attn.k_proj.weight"],
    "layers.1.self_attn.o_proj.input": ["self_attn.v_proj.weight"],
    "layers.1.self_attn.output": ["self_attn.o_proj.weight"],
    "layers.1.mlp.input": ["post_attention_layernorm.weight"],
    "layers.1.mlp.gate_proj.output": ["mlp.gate_proj.weight"],
    "layers.1.mlp.up_proj.output": ["mlp.up_proj.weight"],
    "layers.1.mlp.down_proj.input": ["mlp.up_proj.weight"],
    "layers.1.mlp.output": ["mlp.down_proj.weight"],
    "norm.output": ["model.norm.weight"],
    "embed_tokens.output": ["model.embed_tokens.weight"],
    "logits": ["lm_head.weight"],
}


def doubled(x):
    return 2 * x


def zero(x):
    return 0 * x


def identity(x):
    return x.copy()


@pytest.fixture
def logits_of(tmp_path):
    """Evaluate a random model, some of its tensors changed, some of its activations too."""
    opened = []

    def logits(
        change=None, names=(), hooks=None, n=12, n_batch=512, kv_type="f16", types="q8_0", **changes
    ):
        made = config(**changes)
        tensors = random_tensors(made)
        for name in names:
            name = name if name.startswith(("model.", "lm_head")) else LAYER + name
            tensors[name] = change(tensors[name])
        file = QlmFile.open(write_model(tmp_path / f"tiny{len(opened)}.qlm", made, tensors, types))
        opened.append(file)
        observer = None
        if hooks is not None:
            observer = Observer(frozenset(hooks), lambda at, x: hooks[at.name](x))
        engine = Engine(file, n_threads=2, n_batch=n_batch, kv_type=kv_type, observer=observer)
        opened.append(engine)
        tokens = np.random.default_rng(1).integers(0, made.vocab_size, n).tolist()
        return engine.evaluate(tokens, position=0, all_logits=True)

    yield logits
    for one in reversed(opened):
        one.close()


@pytest.mark.parametrize("name", PRODUCTS)
def test_observer_doubling_an_activation_is_doubling_its_weights(logits_of, name):
    hooked = logits_of(hooks={name: doubled})
    np.testing.assert_array_equal(hooked, logits_of(doubled, PRODUCTS[name]))
    assert not np.array_equal(hooked, logits_of())


@pytest.mark.parametrize("name", ["layers.1.self_attn.output", "layers.1.mlp.output"])
def test_observer_ablating_a_sublayer_is_zeroing_its_last_matrix(logits_of, name):
    np.testing.assert_array_equal(logits_of(hooks={name: zero}), logits_of(zero, PRODUCTS[name]))


def test_observer_ablating_a_head_is_zeroing_its_columns_of_o_proj(logits_of):
    def without_head(x):
        x[:, 2] = 0
        return x

    def without_columns(w):
        w = w.copy()
        w[:, 32:48] = 0
        return w

    hooked = logits_of(hooks={"layers.1.self_attn.o_proj.input": without_head}, types="f32")
    expected = logits_of(without_columns, ["self_attn.o_proj.weight"], types="f32")
    np.testing.assert_array_equal(hooked, expected)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("name", ["scores", "weights"])
def test_observer_letting_tokens_see_themselves_alone_is_a_window_of_one(logits_of, name, kv_type):
    off = {"scores": -np.inf, "weights": 0.0}[name]

    def alone(x):
        return np.where(np.eye(x.shape[1], dtype=bool), x if name == "scores" else 1 + 0 * x, off)

    hooked = logits_of(
        hooks={f"layers.{i}.self_attn.{name}": alone for i in range(2)}, kv_type=kv_type
    )
    np.testing.assert_array_equal(hooked, logits_of(sliding_window=1, kv_type=kv_type))


def test_observer_ablating_a_product_takes_its_bias_too(logits_of):
    biased = {"attention_output_bias": True, "mlp_bias": True}
    for matrix, name in (("self_attn.o_proj", "self_attn"), ("mlp.down_proj", "mlp")):
        np.testing.assert_array_equal(
            logits_of(hooks={f"layers.1.{name}.output": zero}, **biased),
            logits_of(zero, [f"{matrix}.weight", f"{matrix}.bias"], **biased),
        )


@pytest.mark.parametrize("name", activation_shapes(config()))
def test_observer_that_gives_back_what_it_saw_changes_no_bit(logits_of, name):
    np.testing.assert_array_equal(logits_of(hooks={name: identity}), logits_of())


@pytest.mark.parametrize("name", activation_shapes(config()))
def test_observer_changing_one_token_changes_it_and_no_earlier_one(logits_of, name):
    def change(x):
        rows = x.swapaxes(0, 1) if x.shape[0] == 4 else x  # of scores, heads come first
        rows[5] = np.where(np.isfinite(rows[5]), rows[5] * 0.5 + 0.25, rows[5])
        return x

    before, after = logits_of(), logits_of(hooks={name: change})
    np.testing.assert_array_equal(after[:5], before[:5])
    assert not np.array_equal(after[5], before[5])


def test_observer_that_raises_ends_the_evaluation_and_leaves_the_engine_usable(tmp_path):
    made = config()
    fails = [True]

    def visit(at, values):
        if fails and at.layer == 1:
            raise RuntimeError("no more")

    with QlmFile.open(write_model(tmp_path / "m.qlm", made, random_tensors(made))) as file:
        engine = Engine(
            file, n_threads=2, observer=Observer(frozenset(["layers.1.self_attn.q"]), visit)
        )
        plain = Engine(file, n_threads=2)
        with pytest.raises(RuntimeError, match="no more"):
            engine.evaluate([1, 2, 3], position=0)
        fails.clear()
        again = engine.evaluate([1, 2, 3], position=0)
        np.testing.assert_array_equal(again, plain.evaluate([1, 2, 3], position=0))
        engine.close()
        plain.close()


def test_observer_check_is_called_between_layers(tmp_path):
    made = config(num_hidden_layers=4)
    checks = []
    with QlmFile.open(write_model(tmp_path / "m.qlm", made, random_tensors(made))) as file:
        observer = Observer(frozenset(["layers.2.output"]), lambda at, values: None)
        engine = Engine(file, n_threads=2, observer=observer)
        engine.evaluate([1, 2], position=0, check=lambda: checks.append(1))
        engine.close()
    assert len(checks) == 3  # of two layers at once, of one, of one


def test_read_out_of_the_last_layer_is_the_logits(tmp_path):
    made = config(hidden_size=40, vocab_size=51)
    seen = {}

    def visit(at, values):
        seen.setdefault(at.name, []).append(values)

    with QlmFile.open(write_model(tmp_path / "m.qlm", made, random_tensors(made), "q4")) as file:
        engine = Engine(file, n_threads=2, observer=Observer(frozenset(["layers.1.output"]), visit))
        logits = engine.evaluate([1, 2, 3, 4, 5], position=0, all_logits=True)
        other = Engine(file, n_threads=2, n_batch=3)
        for rows in (slice(2), slice(2, 5), slice(4, 5)):
            read = other.read_out(seen["layers.1.output"][0][rows])
            np.testing.assert_array_equal(read, logits[rows])
        engine.close()
        other.close()
