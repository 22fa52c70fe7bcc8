"""The compiled forward pass against the plain numpy one, for every variant of a model.

How each comparison is bounded. Every compiled product is the exact product of weights
that are off by at most gamma(n) of themselves, n the roundings that a term passes through
(Higham 2002, section 3.1). So the compiled logits are those of a model perturbed like
that, and `rounding_spread` measures what such a perturbation does: it draws signs at
random, at the full size, and keeps the largest change. Real roundings are smaller (they
hardly ever all reach the bound) but not independent; a factor of 4 covers that.

Keys and values are rounded to half precision by both sides, but a number close to a tie
may go up on one side and down on the other. The perturbed models meet more such ties
than the compiled one, so the spread includes them.

Matrices of integers read int8 activations, where such a tie costs a whole step, which
changes the codes of its token from there on: that text is then off by the size of the
quantization noise itself. But ties are rare: a relative difference of 1e-6 meets one in
some thousands of numbers. So many short texts are compared, and at least half of them
must agree as if there were none: to a fiftieth of the noise, which is the difference that
rounding to int8 and half precision makes in the reference. What is left there is the
rounding of the head's input, 1/127 of the size of one step of a layer's; or, of floats,
2**-24 beside the 2**-12 of half precision.
"""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import config, random_tensors, write_model

from qllama.format import QlmFile
from qllama.model import reference
from qllama.model.engine import Engine
from qllama.tensors import expected_shapes

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
EVERY_BIAS = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
CONFIGS = {
    "plain": {},
    "one layer": {"num_hidden_layers": 1},
    "tied": {"tie_word_embeddings": True},
    "multi-head": {"num_key_value_heads": 4},
    "gqa 3": {"num_attention_heads": 9, "num_key_value_heads": 3},
    "gqa 7": {"num_attention_heads": 14},
    "multi-query": {"num_key_value_heads": 1},
    "many queries a head": {"num_attention_heads": 40, "num_key_value_heads": 1, "head_dim": 4},
    "head_dim 40": {"head_dim": 40},
    "head_dim 80": {"head_dim": 80, "num_attention_heads": 2, "num_key_value_heads": 1},
    "head_dim 2": {"head_dim": 2, "num_attention_heads": 6},
    "hidden 96": {"hidden_size": 96, "intermediate_size": 160},
    "hidden 40": {"hidden_size": 40, "intermediate_size": 176},
    "hidden 8": {"hidden_size": 8, "intermediate_size": 13},
    "odd vocabulary": {"vocab_size": 51},
    "attention bias": {"attention_bias": True},
    "every bias": {**EVERY_BIAS, "hidden_size": 40, "intermediate_size": 70},
    "norms of heads": {"qk_norm": True, "head_dim": 40},
    "window 5": {"sliding_window": 5},
    "window 1": {"sliding_window": 1},
    "large eps": {"rms_norm_eps": 0.1},
    "rope base": {"rope_theta": 100.0},
    "rope linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "rope llama3": {"rope_scaling": LLAMA3},
    "rope yarn": {"rope_scaling": YARN},
    "rope divisors": {"rope_scaling": {"rope_type": "divisors"}},
}
EVERYTHING = {
    **EVERY_BIAS,
    "qk_norm": True,
    "num_attention_heads": 6,
    "head_dim": 24,
    "hidden_size": 72,
    "vocab_size": 51,
    "rope_scaling": {"rope_type": "divisors"},
}
U = 2.0**-24


def some_tokens(file, n, seed=1):
    return np.random.default_rng(seed).integers(0, file.config.vocab_size, n).tolist()


def compiled(path, tokens, n_batch=16):
    with QlmFile.open(path) as file:
        engine = Engine(file, n_threads=2, n_batch=n_batch)
        try:
            return engine.evaluate(tokens, position=0, all_logits=True)
        finally:
            engine.close()


class Perturbed:
    """A model file whose float weights are off by as much as its products' roundings."""

    def __init__(self, file, seed):
        self._file, self._rng = file, np.random.default_rng(seed)
        self.config, self.tensors, self.vector = file.config, file.tensors, file.vector

    def matrix(self, name):
        w = self._file.matrix(name)
        # Two chains of k / 2 additions of products; norms, exp and softmax take the rest.
        n = w.shape[1] / 2 + 8
        return (w * (1 + n * U * self._rng.choice([-1.0, 1.0], w.shape))).astype(np.float32)


def rounding_spread(file, tokens, expected):
    """Largest change of a logit among four perturbed models; see the module's docstring."""
    draws = (
        reference.forward(Perturbed(file, seed), tokens, quantize_activations=True)
        for seed in range(4)
    )
    return max(np.abs(draw - expected).max() for draw in draws)


def difference(path, tokens, **how):
    """Compiled minus reference logits, and the bound of the largest one."""
    with QlmFile.open(path) as file:
        expected = reference.forward(file, tokens, quantize_activations=True)
        limit = 4 * rounding_spread(file, tokens, expected)
    return compiled(path, tokens, **how) - expected, limit


N_TEXTS, TEXT_LENGTH = 25, 4


def short_texts(file):
    return np.reshape(some_tokens(file, N_TEXTS * TEXT_LENGTH), (N_TEXTS, TEXT_LENGTH))


def compiled_together(path, texts, **how):
    """Logits of several texts evaluated as one ragged batch."""
    n_tokens = texts.size
    with QlmFile.open(path) as file:
        engine = Engine(
            file, n_ctx=TEXT_LENGTH, n_threads=2, n_slots=N_TEXTS, n_batch=n_tokens, **how
        )
        positions, slots = np.tile(np.arange(TEXT_LENGTH), N_TEXTS), np.arange(n_tokens)
        arrays = (texts.ravel(), positions, slots // TEXT_LENGTH)
        try:
            logits = engine.forward(*(a.astype(np.int32) for a in arrays), range(n_tokens))
        finally:
            engine.close()
    return logits.reshape(N_TEXTS, TEXT_LENGTH, -1)


def reference_and_noise(path, **how):
    """Texts, their reference logits, and the root mean square of the quantization noise."""
    with QlmFile.open(path) as file:
        texts = short_texts(file)
        rounded, plain = (
            np.stack(
                [reference.forward(file, t, quantize_activations=q, **how) for t in texts.tolist()]
            )
            for q in (True, False)
        )
    return texts, rounded, np.sqrt(np.mean((rounded - plain) ** 2))


def typical_error(logits, expected):
    """Median over texts of the root mean square error."""
    return np.median(np.sqrt(np.mean((logits - expected) ** 2, axis=(1, 2))))


@pytest.fixture
def model(tmp_path):
    """Write a random model with some fields changed."""

    def write(changes, types="f32", tensors=None, **how):
        made = config(**changes)
        tensors = random_tensors(made) if tensors is None else tensors
        return write_model(tmp_path / "tiny.qlm", made, tensors, types, **how)

    return write


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_any_configuration_equals_the_reference_within_rounding(model, name):
    path = model(CONFIGS[name])
    with QlmFile.open(path) as file:
        tokens = some_tokens(file, 40)
    error, limit = difference(path, tokens)
    assert np.abs(error).max() <= limit
    assert limit < 0.1  # of logits whose standard deviation is near 1.5


@pytest.mark.parametrize("name", ["f16", "bf16"])
@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
def test_forward_half_precision_weights_equal_the_reference_within_rounding(model, name, changes):
    path = model(changes, name, vector_type=name)
    with QlmFile.open(path) as file:
        tokens = some_tokens(file, 40)
    error, limit = difference(path, tokens)
    assert np.abs(error).max() <= limit


@pytest.mark.parametrize(
    "name", ["plain", "gqa 7", "head_dim 80", "head_dim 2", "norms of heads", "window 1"]
)
def test_forward_cache_of_q8_differs_from_the_reference_by_less_than_its_noise(model, name):
    path = model(CONFIGS[name])
    texts, expected, noise = reference_and_noise(path, kv_type="q8")
    logits = compiled_together(path, texts, kv_type="q8")
    assert typical_error(logits, expected) <= noise / 50
    assert typical_error(compiled_together(path, texts), expected) > noise / 50


@pytest.mark.parametrize("window", [None, 100, 300])
def test_forward_long_text_equals_the_reference_within_rounding(model, window):
    path = model({"num_attention_heads": 6, "sliding_window": window})
    with QlmFile.open(path) as file:
        tokens = some_tokens(file, 530)
    error, limit = difference(path, tokens, n_batch=100)
    assert np.abs(error).max() <= limit


MIXTURES = {
    "q8_0": "q8_0",
    "q4_0": "q4_0",
    "q4": "q4",
    "q5": "q5",
    "q6": "q6",
    "q4 preset": {"embed_tokens": "q8_0", "lm_head": "q8_0", "proj": "q4"},
    "float attention": {"self_attn": "f16", "mlp": "q4_0", "": "bf16"},
    "float mlp": {"mlp": "f32", "self_attn": "q8_0", "": "q4"},
    "every type": {
        "q_proj": "q8_0",
        "k_proj": "f16",
        "v_proj": "q4",
        "o_proj": "f32",
        "gate_proj": "q4_0",
        "up_proj": "bf16",
        "down_proj": "q4",
        "embed": "q4_0",
        "lm_head": "q4",
    },
}
INTEGER_CONFIGS = {
    "one layer": {"num_hidden_layers": 1},
    "two layers": {},
    "hidden 40": {"hidden_size": 40, "intermediate_size": 176},
    "everything": EVERYTHING,
    "tied": {"tie_word_embeddings": True, "vocab_size": 51},
}


def assert_equal_but_for_ties(path):
    texts, expected, noise = reference_and_noise(path)
    assert typical_error(compiled_together(path, texts), expected) <= noise / 50


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_any_configuration_equals_the_reference_but_for_ties(model, name):
    assert_equal_but_for_ties(model(CONFIGS[name]))


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("name", INTEGER_CONFIGS)
def test_forward_integer_weights_equal_the_reference_but_for_ties(model, mixture, name):
    assert_equal_but_for_ties(model(INTEGER_CONFIGS[name], MIXTURES[mixture]))


@pytest.mark.parametrize("name", ["f16", "bf16", "q8_0", "q4_0", "q4", "q5", "q6"])
def test_forward_embedding_of_any_type_is_read_without_its_padding(model, name):
    # 24 columns of padding share a block with weights: zeros that q4 does not keep.
    assert_equal_but_for_ties(model({"hidden_size": 40}, {"embed_tokens": name, "": "f32"}))


@pytest.mark.parametrize("types", ["f32", "q8_0"])
def test_forward_every_tensor_that_is_lost_is_seen(model, types):
    """Mutation check of the bounds: the compiled pass reads a model with a tensor reset."""
    made = config(**EVERYTHING)
    tensors = random_tensors(made)
    path = model(EVERYTHING, types)
    with QlmFile.open(path) as file:
        tokens = some_tokens(file, 30)
        expected = reference.forward(file, tokens, quantize_activations=True)
        limit = 4 * rounding_spread(file, tokens, expected)
    texts, expected_of_texts, noise = reference_and_noise(path)
    for name in expected_shapes(made):
        neutral = 1 if name.endswith(("norm.weight", "divisors")) else 0
        mutant = model(EVERYTHING, types, tensors | {name: np.full_like(tensors[name], neutral)})
        if types == "f32":
            assert np.abs(compiled(mutant, tokens) - expected).max() > limit, name
        error = typical_error(compiled_together(mutant, texts), expected_of_texts)
        assert error > noise / 50, name
