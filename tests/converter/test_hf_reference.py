"""Converted Hugging Face repositories against transformers: the same logits for the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_gguf
from gguf import GGMLQuantizationType as Ggml
from safetensors.numpy import load_file
from tiny_hf import VOCAB_SIZE, write_tokenizer

from converter.pipeline import convert
from qllama import Llama
from qllama.format import QlmFile
from qllama.model.reference import forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}

# What each model shows: family, then what is changed of COMMON.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, as many kv heads": ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-6}),
    "llama, grouped heads": ("llama", {"num_key_value_heads": 1}),
    "llama, head_dim of its own": ("llama", {"head_dim": 32}),
    "llama, width no multiple of 32": ("llama", {"hidden_size": 72, "intermediate_size": 100}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA_3, "tie_word_embeddings": True}),
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "mistral, window": ("mistral", {"sliding_window": 16}),
    "mistral, no window": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}}),
    "qwen2, window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
    ),
    "qwen2, yarn rope": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3, biases": ("qwen3", {"head_dim": 32, "attention_bias": True}),
    "phi3": ("phi3", {}),
    "phi3, window": ("phi3", {"sliding_window": 16, "num_key_value_heads": 4}),
}

# Longer than every window and every original context.
TOKENS = np.random.default_rng(0).integers(VOCAB_SIZE, size=100).tolist()

# Random weights that are exact in the stored type, so that only arithmetic differs.
TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def random_model(family: str, changes: dict[str, Any]) -> Any:
    """A model of transformers whose weights are of sizes at which signals flow."""
    config = transformers.AutoConfig.for_model(family, **{**COMMON, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith(".bias"):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
    return model.eval()


def save(model: Any, directory: Path, dtype: str, **how: Any) -> Path:
    """Save a model with its weights in `dtype`, and a tokenizer."""
    model.to(getattr(torch, dtype)).save_pretrained(directory, **how)
    write_tokenizer(directory)
    return directory


def expected_logits(directory: Path) -> np.ndarray:
    """Logits that transformers computes in float32 from what is in the files."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([TOKENS])).logits[0].numpy()
    return logits


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("name", MODELS)
def test_hf_logits_in_float32_are_those_of_transformers(tmp_path, name, type_name):
    model = random_model(*MODELS[name])
    directory = save(model, tmp_path / "m", TYPES[type_name], max_shard_size="60KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    convert(directory, tmp_path / "m.qlm", type=type_name)
    with QlmFile.open(tmp_path / "m.qlm") as file:
        found = forward(file, TOKENS)
    expected = expected_logits(directory)
    difference = float(np.abs(found - expected).max())
    print(f"{name}, {type_name}: {difference:.1e} of {np.abs(expected).max():.1f}")
    assert difference < 1e-3


# The engine rounds keys and values to float16, which costs 2**-11 of each; three layers of
# random weights make of it what is printed, 0.1 % on average. A wrong row order or frequency
# makes logits that have nothing to do with the expected ones: their distance is near 140 %.
@pytest.mark.parametrize("name", MODELS)
def test_hf_logits_of_the_engine_are_close_to_those_of_transformers(tmp_path, name):
    directory = save(random_model(*MODELS[name]), tmp_path / "m", "float32")
    convert(directory, tmp_path / "m.qlm", type="f32")
    with Llama(tmp_path / "m.qlm", n_ctx=128) as llm:
        found = llm.logits(TOKENS)
    expected = expected_logits(directory)
    distance = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    print(f"{name}: {distance:.2%}")
    assert distance < 0.005


GGUF_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, llama3 rope": (
        "llama",
        {"rope_parameters": LLAMA_3, "tie_word_embeddings": True},
    ),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


@pytest.mark.parametrize("name", GGUF_MODELS)
def test_gguf_logits_in_float32_are_those_of_transformers(tmp_path, name):
    family, changes = GGUF_MODELS[name]
    directory = save(
        random_model(family, {**small_gguf.SIZES, **changes}), tmp_path / "m", "float32"
    )
    rope = changes.get("rope_parameters", {})
    values = {"model_type": family, "rope_theta": rope.get("rope_theta", 1e4), **changes}
    values["rope_scaling"] = rope
    tensors = load_file(directory / "model.safetensors")
    gguf = small_gguf.write(tmp_path / "m.gguf", tensors, values, Ggml.F32)
    convert(gguf, tmp_path / "m.qlm", type="f32")
    with QlmFile.open(tmp_path / "m.qlm") as file:
        found = forward(file, TOKENS)
    expected = expected_logits(directory)
    difference = float(np.abs(found - expected).max())
    print(f"{name}, gguf: {difference:.1e} of {np.abs(expected).max():.1f}")
    assert difference < 1e-3
