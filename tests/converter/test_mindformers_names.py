"""MindFormers' names, fused matrices and row orders, put in Hugging Face's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from memory_tensor import MemoryTensor

from converter.mindformers_names import Layouts, hugging_face_names, unfused
from qllama.config import ModelConfig
from qllama.errors import ConversionError
from qllama.tensors import expected_shapes

WHERE = Path("model.ckpt")
HEADS, KV_HEADS, HEAD_DIM, HIDDEN, WIDTH = 6, 2, 4, 24, 40
Q, KV = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=11,
    hidden_size=HIDDEN,
    intermediate_size=WIDTH,
    num_hidden_layers=1,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    attention_bias=True,
)
LAYER = "model.layers.0."
NAMES = {
    "model.tok_embeddings.embedding_weight": "model.embed_tokens.weight",
    "model.layers.0.attention_norm.weight": LAYER + "input_layernorm.weight",
    "model.layers.0.attention.wq.weight": LAYER + "self_attn.q_proj.weight",
    "model.layers.0.attention.wq.bias": LAYER + "self_attn.q_proj.bias",
    "model.layers.0.attention.wk.weight": LAYER + "self_attn.k_proj.weight",
    "model.layers.0.attention.wk.bias": LAYER + "self_attn.k_proj.bias",
    "model.layers.0.attention.wv.weight": LAYER + "self_attn.v_proj.weight",
    "model.layers.0.attention.wv.bias": LAYER + "self_attn.v_proj.bias",
    "model.layers.0.attention.wo.weight": LAYER + "self_attn.o_proj.weight",
    "model.layers.0.ffn_norm.weight": LAYER + "post_attention_layernorm.weight",
    "model.layers.0.feed_forward.w1.weight": LAYER + "mlp.gate_proj.weight",
    "model.layers.0.feed_forward.w2.weight": LAYER + "mlp.down_proj.weight",
    "model.layers.0.feed_forward.w3.weight": LAYER + "mlp.up_proj.weight",
    "model.norm_out.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    """A model in Hugging Face's names and order, every value its own."""
    rng = np.random.default_rng(1)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in expected_shapes(CONFIG).items()
    }


def in_mindformers(weights):
    return {tag: weights[name] for tag, name in NAMES.items()}


def translated(stored, **layouts):
    """What comes of a checkpoint, read in pieces of 3 rows."""
    tensors = {tag: MemoryTensor(tag, values) for tag, values in stored.items()}
    names = hugging_face_names(WHERE, stored)
    raw = unfused(WHERE, tensors, names, CONFIG, Layouts(**layouts))
    values = {}
    for name, tensor in raw.items():
        rows = range(0, tensor.shape[0], 3)
        values[name] = np.concatenate([tensor.read(i, min(i + 3, tensor.shape[0])) for i in rows])
        assert values[name].shape == tensor.shape
        assert tensor.n_bytes == values[name].nbytes
    return values


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def by_kv_head(q, k, v):
    """Rows of w_qkv since MindFormers 1.4: a key/value head's queries, its key, its value."""
    parts = zip(*(np.split(w, KV_HEADS) for w in (q, k, v)), strict=True)
    return np.concatenate([w for head in parts for w in head])


def in_turns(gate, up):
    """Rows of w_gate_hidden since MindFormers 1.4."""
    both = np.empty((2 * len(gate), *gate.shape[1:]), gate.dtype)
    both[0::2], both[1::2] = gate, up
    return both


def fused(stored, grouped):
    """Fuse the matrices as new versions of MindFormers do, or as old ones."""
    stored = dict(stored)
    attention, ffn = LAYER + "attention.", LAYER + "feed_forward."
    for kind in ("weight", "bias"):
        qkv = [stored.pop(f"{attention}{w}.{kind}") for w in ("wq", "wk", "wv")]
        stored[f"{attention}w_qkv.{kind}"] = by_kv_head(*qkv) if grouped else np.concatenate(qkv)
    both = [stored.pop(f"{ffn}{w}.weight") for w in ("w1", "w3")]
    stored[ffn + "w_gate_hidden.weight"] = in_turns(*both) if grouped else np.concatenate(both)
    return stored


def to_meta(w, heads):
    """Rows of q or k as in Meta's checkpoints and those of MindFormers 0.6."""
    return w.reshape(heads, 2, HEAD_DIM // 2, -1).swapaxes(1, 2).reshape(w.shape)


def interleaved(weights):
    weights = dict(weights)
    for part, heads in (("q", HEADS), ("k", KV_HEADS)):
        for kind in ("weight", "bias"):
            name = f"{LAYER}self_attn.{part}_proj.{kind}"
            weights[name] = to_meta(weights[name], heads)
    return weights


def test_names_are_translated(weights):
    assert_equal(translated(in_mindformers(weights)), weights)


def test_names_without_prefix_and_of_meta_are_translated(weights):
    stored = {tag.removeprefix("model."): v for tag, v in in_mindformers(weights).items()}
    stored["tok_embeddings.weight"] = stored.pop("tok_embeddings.embedding_weight")
    assert_equal(translated(stored), weights)


@pytest.mark.parametrize("grouped", [True, False], ids=["grouped", "stacked"])
def test_fused_matrices_are_taken_apart(weights, grouped):
    stored = fused(in_mindformers(weights), grouped)
    layout = "grouped" if grouped else "stacked"
    assert_equal(translated(stored, fused=layout), weights)
    other = "stacked" if grouped else "grouped"
    wrong = translated(stored, fused=other)
    assert not np.array_equal(
        wrong[LAYER + "mlp.gate_proj.weight"], weights[LAYER + "mlp.gate_proj.weight"]
    )


def test_fused_matrices_in_an_order_nobody_told_are_refused(weights):
    with pytest.raises(ConversionError, match=r"w_qkv\.weight is fused, .* give --fused-layout"):
        translated(fused(in_mindformers(weights), grouped=True))


@pytest.mark.parametrize("layout", [None, "grouped", "stacked"])
def test_interleaved_rows_are_put_in_half_split_order(weights, layout):
    stored = in_mindformers(interleaved(weights))
    if layout is not None:
        stored = fused(stored, grouped=layout == "grouped")
    assert_equal(translated(stored, rope="interleaved", fused=layout), weights)


def test_transposed_down_projection_is_known_by_its_shape(weights):
    stored = in_mindformers(weights)
    stored[LAYER + "feed_forward.w2.weight"] = stored[LAYER + "feed_forward.w2.weight"].T
    assert_equal(translated(stored), weights)


LEFT_BY_TRAINING = [
    "adam_m.model.layers.0.attention.wq.weight",
    "adam_v.lm_head.weight",
    "exp_avg.lm_head.weight",
    "exp_avg_sq.lm_head.weight",
    "max_exp_avg_sq.lm_head.weight",
    "exp_avg_sq_row_lm_head.weight",
    "moment1.lm_head.weight",
    "moments.lm_head.weight",
    "muon_m.lm_head.weight",
    "accu_grads.lm_head.weight",
    "epoch_num",
    "step_num",
    "global_step",
    "loss_scale",
    "scale_sense",
    "learning_rate",
    "beta1_power",
    "current_iterator_step",
    "last_overflow_iterator_step",
    "model.layers.0.attention.infer_attention.paged_attention_mgr.key_cache",
    "model.layers.0.attention.value_cache",
]


def test_what_training_leaves_is_skipped():
    assert hugging_face_names(WHERE, ["lm_head.weight", *LEFT_BY_TRAINING]) == {
        "lm_head.weight": ("lm_head.weight",)
    }


@pytest.mark.parametrize(
    "tag",
    [
        "model.layers.0.attention.wx.weight",
        "model.layers.01.attention.wq.weight",
        "model.layers.0.attention.wq.scale",
        "adam_m",
        "model.embed_tokens.weight",
        "something\nelse",
    ],
)
def test_unknown_parameter_is_refused_by_name(tag):
    with pytest.raises(ConversionError, match="Llama does not have: ") as caught:
        hugging_face_names(WHERE, ["lm_head.weight", tag])
    assert tag.replace("\n", "\\n") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_adapter_is_refused_with_advice():
    tag = "model.layers.0.attention.wq.mindpet_delta_lora_a"
    with pytest.raises(ConversionError, match="transform_ckpt_lora"):
        hugging_face_names(WHERE, [tag])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("model.tok_embeddings.weight", "model.tok_embeddings.embedding_weight"),
        ("model.layers.0.attention.w_qkv.weight", "model.layers.0.attention.wk.weight"),
        ("lm_head.weight", "model.lm_head.weight"),
    ],
)
def test_tensor_that_is_there_twice_is_refused(first, second):
    with pytest.raises(ConversionError, match=f"'{first}' and '{second}' are both "):
        hugging_face_names(WHERE, [first, second])


@pytest.mark.parametrize(
    ("tag", "cut"),
    [
        ("model.layers.0.attention.wq.weight", np.s_[:12]),
        ("model.layers.0.attention.wo.weight", np.s_[:, :12]),
        ("model.layers.0.attention.wk.bias", np.s_[:4]),
        ("model.tok_embeddings.embedding_weight", np.s_[:, :12]),
    ],
)
def test_slice_of_a_parallel_training_is_explained(weights, tag, cut):
    stored = in_mindformers(weights)
    stored[tag] = stored[tag][cut]
    with pytest.raises(ConversionError, match="one of 2 slices from training on several devices"):
        translated(stored)


def test_slice_of_a_fused_matrix_is_explained(weights):
    stored = fused(in_mindformers(weights), grouped=True)
    tag = LAYER + "attention.w_qkv.weight"
    stored[tag] = stored[tag][: (Q + 2 * KV) // 2]
    with pytest.raises(ConversionError, match="one of 2 slices"):
        translated(stored, fused="grouped")


def test_fused_matrix_of_a_wrong_shape_is_refused(weights):
    stored = fused(in_mindformers(weights), grouped=True)
    tag = LAYER + "attention.w_qkv.weight"
    stored[tag] = stored[tag][:-1]
    with pytest.raises(ConversionError, match=r"expected shape \(40, 24\), found \(39, 24\)"):
        translated(stored, fused="grouped")
