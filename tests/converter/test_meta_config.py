"""`params.json`: published ones, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.hf_config import config_from_hugging_face
from converter.meta_config import hugging_face_values
from qllama.config import RopeScaling
from qllama.errors import ConversionError, QllamaError, UnsupportedModelError

WHERE = Path("params.json")
LLAMA_1_7B = {
    "dim": 4096,
    "multiple_of": 256,
    "n_heads": 32,
    "n_layers": 32,
    "norm_eps": 1e-06,
    "vocab_size": -1,
}
LLAMA_1_65B = LLAMA_1_7B | {"dim": 8192, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05}
LLAMA_2_7B = LLAMA_1_7B | {"norm_eps": 1e-05}
LLAMA_2_70B = LLAMA_1_65B | {"multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_kv_heads": 8}
CODE_LLAMA_7B = LLAMA_2_7B | {"rope_theta": 1000000, "vocab_size": 32016}
LLAMA_3_8B = {
    "dim": 4096,
    "ffn_dim_multiplier": 1.3,
    "multiple_of": 1024,
    "n_heads": 32,
    "n_kv_heads": 8,
    "n_layers": 32,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
LLAMA_31_8B = LLAMA_3_8B | {"use_scaled_rope": True}
LLAMA_31_405B = LLAMA_31_8B | {
    "dim": 16384,
    "ffn_dim_multiplier": 1.2,
    "multiple_of": 4096,
    "n_heads": 128,
    "n_layers": 126,
}
LLAMA_32_1B = LLAMA_31_8B | {
    "dim": 2048,
    "ffn_dim_multiplier": 1.5,
    "multiple_of": 256,
    "n_layers": 16,
}
LLAMA_32_3B = LLAMA_31_8B | {
    "dim": 3072,
    "ffn_dim_multiplier": 1.0,
    "multiple_of": 256,
    "n_heads": 24,
    "n_layers": 28,
}
MISTRAL_7B = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
NEMO = MISTRAL_7B | {
    "dim": 5120,
    "n_layers": 40,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 131072,
}


def config(params, vocab_size=32000):
    values = hugging_face_values(WHERE, params, vocab_size, tied=False)
    names = ["lm_head.weight", *(f"model.layers.{i}" for i in range(200))]
    return config_from_hugging_face(WHERE, values, names)


@pytest.mark.parametrize(
    ("params", "heads", "intermediate", "context", "theta"),
    [
        (LLAMA_1_7B, (32, 32, 128), 11008, 2048, 1e4),
        (LLAMA_1_65B, (64, 64, 128), 22016, 2048, 1e4),
        (LLAMA_2_7B, (32, 32, 128), 11008, 4096, 1e4),
        (LLAMA_2_70B, (64, 8, 128), 28672, 4096, 1e4),
        (CODE_LLAMA_7B, (32, 32, 128), 11008, 16384, 1e6),
        (LLAMA_3_8B, (32, 8, 128), 14336, 8192, 5e5),
        (LLAMA_31_8B, (32, 8, 128), 14336, 131072, 5e5),
        (LLAMA_31_405B, (128, 8, 128), 53248, 131072, 5e5),
        (LLAMA_32_1B, (32, 8, 64), 8192, 131072, 5e5),
        (LLAMA_32_3B, (24, 8, 128), 8192, 131072, 5e5),
        (MISTRAL_7B, (32, 8, 128), 14336, 32768, 1e4),
        (NEMO, (32, 8, 128), 14336, 32768, 1e6),
    ],
)
def test_params_of_published_models_give_their_config(params, heads, intermediate, context, theta):
    found = config(params)
    assert (found.num_attention_heads, found.num_key_value_heads, found.head_dim) == heads
    assert found.hidden_size == params["dim"]
    assert found.num_hidden_layers == params["n_layers"]
    assert found.intermediate_size == intermediate
    assert found.max_position_embeddings == context
    assert found.rope_theta == theta
    assert found.rms_norm_eps == params["norm_eps"]
    assert found.vocab_size == max(params["vocab_size"], 32000)
    assert found.sliding_window == params.get("sliding_window")


@pytest.mark.parametrize(
    ("params", "factor"),
    [(LLAMA_31_8B, 8.0), (LLAMA_31_405B, 8.0), (LLAMA_32_1B, 32.0), (LLAMA_32_3B, 32.0)],
)
def test_params_with_scaled_rope_have_the_factor_of_their_size(params, factor):
    assert config(params).rope_scaling == RopeScaling(
        rope_type="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    assert config(params | {"use_scaled_rope": False}).rope_scaling is None


def test_params_one_level_down_are_taken():
    assert config({"model": LLAMA_3_8B}) == config(LLAMA_3_8B)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dim": 5120, "use_scaled_rope": True}, UnsupportedModelError, "use_scaled_rope = True"),
        ({"moe": {"num_experts": 8}}, UnsupportedModelError, "a mixture of experts"),
        ({"lora_args": {"rank": 16}}, UnsupportedModelError, "lora_args = .*QLoRA"),
        ({"quantization_args": {"group_size": 32}}, UnsupportedModelError, "quantization_args"),
        ({"vision_chunk_size": 560}, UnsupportedModelError, "a vision model"),
        ({"use_biases": True}, UnsupportedModelError, "use_biases = True: expected False"),
        ({"_sliding_window": [32768]}, UnsupportedModelError, "_sliding_window = .*does not know"),
        ({"dim": None}, ConversionError, "params.json: dim is missing"),
        ({"dim": "wide"}, ConversionError, "dim: expected an integer, found 'wide'"),
        ({"n_heads": 0}, ConversionError, "n_heads: expected 1 to 2147483647, found 0"),
        ({"multiple_of": 0}, ConversionError, "multiple_of: expected 1 to"),
        ({"norm_eps": None}, ConversionError, "norm_eps is missing"),
        ({"n_kv_heads": 7}, QllamaError, "num_key_value_heads"),
        ({"dim": 2**40}, ConversionError, "dim: expected 1 to 2147483647"),
        ({"ffn_dim_multiplier": -1}, ConversionError, "ffn_dim_multiplier: expected a positive"),
        ({"sliding_window": "wide"}, ConversionError, "sliding_window: expected an integer"),
        ({"hidden_dim": 14336, "rope_theta": None}, UnsupportedModelError, "rope_theta is missing"),
    ],
)
def test_params_that_are_damaged_or_ask_for_more_are_refused(changes, error, message):
    with pytest.raises(error, match=message) as caught:
        config(LLAMA_3_8B | changes)
    assert str(caught.value).startswith("params.json: ")
    assert "\n" not in str(caught.value)


def test_params_that_change_nothing_are_taken():
    more = {"max_batch_size": 4, "model_type": "transformer", "vision_chunk_size": -1}
    assert config(LLAMA_3_8B | more) == config(LLAMA_3_8B)


ABSURD = (10**400, -(10**400), 2**63, -1, 0, 1.5, 1e308, -1e308, float("nan"), True, "", [[]], {})


@pytest.mark.parametrize("key", [*LLAMA_31_8B, *MISTRAL_7B, "max_seq_len", "model"])
def test_params_with_an_absurd_value_give_a_config_or_one_clear_line(key):
    for value in ABSURD:
        for params in (LLAMA_31_8B, MISTRAL_7B):
            try:
                config(params | {key: value})
            except QllamaError as error:
                message = str(error)
            else:
                continue
            assert message.startswith("params.json: ")
            assert "\n" not in message
