"""Adapters that PEFT saved, merged by both: the same logits for the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_hf_reference import TOKENS, random_model, save
from tiny_gguf import HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, write_gguf
from tiny_gguf import VOCAB_SIZE as GGUF_VOCAB_SIZE
from tiny_hf import VOCAB_SIZE, write_tokenizer

from converter.pipeline import convert
from converter.sources.gguf import GgufSource
from qllama.format import QlmFile
from qllama.model.reference import forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

OWNER = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
TIED = {"tie_word_embeddings": True}
BIASES = {"attention_bias": True, "mlp_bias": True}

# What each adapter shows: family, what is changed of the model, the adapter's fields.
ADAPTERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "the owner's example": ("llama", {}, OWNER),
    "all linear layers": ("llama", {}, {"r": 4, "target_modules": "all-linear"}),
    "a regular expression": ("llama", {}, {"target_modules": r".*\.[02]\.mlp\.(up|down)_proj"}),
    "rank stabilized": ("qwen3", {"head_dim": 32}, {**OWNER, "use_rslora": True}),
    "patterns": (
        "llama",
        {"num_key_value_heads": 1},
        {
            "r": 4,
            "target_modules": ["q_proj", "k_proj", "o_proj"],
            "rank_pattern": {"k_proj": 2, r"layers\.1\.self_attn\.q_proj": 6},
            "alpha_pattern": {"o_proj": 3, r"^model\.layers\.0\.self_attn\.q_proj": 5},
            "use_rslora": True,
        },
    ),
    "some layers": (
        "mistral",
        {},
        {"target_modules": ["gate_proj", "down_proj"], "layers_to_transform": [0, 2]},
    ),
    "fan_in_fan_out": ("llama", {}, {**OWNER, "fan_in_fan_out": True}),
    "trained biases": ("qwen2", {}, {"target_modules": ["k_proj"], "bias": "lora_only"}),
    "all biases": ("llama", BIASES, {"target_modules": ["up_proj"], "bias": "all"}),
    "fused matrices": ("phi3", {}, {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "embedding and head": ("llama", {}, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "whole modules": ("llama", {}, {**OWNER, "modules_to_save": ["lm_head", "norm"]}),
    "a whole layer's mlp": (
        "llama",
        {},
        {"target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp"]},
    ),
    "whole tied embedding": ("llama", TIED, {**OWNER, "modules_to_save": ["embed_tokens"]}),
    "whole head of a tied model": ("llama", TIED, {**OWNER, "modules_to_save": ["lm_head"]}),
    "tied embedding": ("llama", TIED, {"target_modules": ["embed_tokens"]}),
    "head of a tied model": ("llama", TIED, {"target_modules": ["lm_head", "up_proj"]}),
}


def train(model: Any, directory: Path, fields: dict[str, Any], **how: Any) -> Any:
    """Wrap a model in an adapter, move everything that is trained, and save the adapter."""
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **fields)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(directory, **how)
    return adapted.eval()


def logits_of(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([tokens])).logits[0].float().numpy()
    return logits


def check_agree(path: Path, tokens: list[int], expected: np.ndarray, base: np.ndarray) -> None:
    with QlmFile.open(path) as file:
        found = forward(file, tokens)
    difference = float(np.abs(found - expected).max())
    change = float(np.abs(expected - base).max())
    print(f"{difference:.1e} of {np.abs(expected).max():.1f}; the adapter changes {change:.1f}")
    assert difference < 1e-3
    # Else it would show nothing.
    assert change > 0.1


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_lora_logits_are_those_of_peft(tmp_path, name, safe):
    family, changes, fields = ADAPTERS[name]
    model = random_model(family, changes)
    directory = save(model, tmp_path / "m", "float32")
    base = logits_of(model, TOKENS)
    adapted = train(model, tmp_path / "a", fields, safe_serialization=safe)
    trained = logits_of(adapted, TOKENS)
    if not changes.get("tie_word_embeddings"):
        # Of a tied model, merging in place would change both the embedding and the head.
        merged = logits_of(adapted.merge_and_unload(), TOKENS)
        np.testing.assert_allclose(merged, trained, rtol=0, atol=1e-3)
    assert (tmp_path / "a" / "adapter_model.bin").exists() != safe
    convert(directory, tmp_path / "m.qlm", type="f32", adapters=[(tmp_path / "a", 1.0)])
    check_agree(tmp_path / "m.qlm", TOKENS, trained, base)


def test_lora_two_adapters_with_scales_are_those_of_peft(tmp_path):
    model = random_model("llama", {})
    directory = save(model, tmp_path / "m", "float32")
    base = logits_of(model, TOKENS)
    model = train(model, tmp_path / "a", OWNER).unload()
    train(model, tmp_path / "b", {"r": 2, "target_modules": ["q_proj", "up_proj"]}).unload()
    both = peft.PeftModel.from_pretrained(model, tmp_path / "a", adapter_name="a")
    both.load_adapter(tmp_path / "b", adapter_name="b")
    for module in both.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer) and "b" in module.scaling:
            module.set_scale("b", 0.5)
    both.base_model.set_adapter(["a", "b"])
    expected = logits_of(both.merge_and_unload(), TOKENS)
    adapters = [(tmp_path / "a", 1.0), (tmp_path / "b", 0.5)]
    convert(directory, tmp_path / "m.qlm", type="f32", adapters=adapters)
    check_agree(tmp_path / "m.qlm", TOKENS, expected, base)


@pytest.mark.parametrize("tied", [False, True])
def test_lora_that_adds_tokens_is_that_of_peft(tmp_path, tied):
    model = random_model("llama", {"tie_word_embeddings": tied})
    directory = save(model, tmp_path / "m", "float32")
    base = logits_of(model, TOKENS)
    model.resize_token_embeddings(VOCAB_SIZE + 6)
    whole = {"modules_to_save": ["embed_tokens", "lm_head"]}
    expected = logits_of(train(model, tmp_path / "a", {**OWNER, **whole}), TOKENS)
    assert expected.shape == (len(TOKENS), VOCAB_SIZE + 6)
    write_tokenizer(tmp_path / "a")
    convert(directory, tmp_path / "m.qlm", type="f32", adapters=[(tmp_path / "a", 1.0)])
    with QlmFile.open(tmp_path / "m.qlm") as file:
        found = forward(file, TOKENS)
    assert float(np.abs(found - expected).max()) < 1e-3
    assert float(np.abs(expected[:, :VOCAB_SIZE] - base).max()) > 0.1


def test_lora_on_a_gguf_is_that_of_peft(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    config = transformers.LlamaConfig(
        vocab_size=GGUF_VOCAB_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tensors = GgufSource(path).tensors
    state = {n: torch.from_numpy(t.read(0, t.shape[0])) for n, t in tensors.items()}
    assert model.load_state_dict(state, strict=False).missing_keys == ["lm_head.weight"]
    base = logits_of(model, TOKENS)
    fields = {"r": 4, "lora_alpha": 400, "target_modules": ["q_proj", "k_proj", "down_proj"]}
    expected = logits_of(train(model, tmp_path / "a", fields).merge_and_unload(), TOKENS)
    convert(path, tmp_path / "m.qlm", type="f32", adapters=[(tmp_path / "a", 1.0)])
    check_agree(tmp_path / "m.qlm", TOKENS, expected, base)


# The owner's example in small: a base model in LLM.int8, an adapter trained on it.
def test_lora_on_a_model_in_8_bit_is_that_of_peft(tmp_path):
    pytest.importorskip("bitsandbytes")
    save(random_model("llama", {}), tmp_path / "float", "float16")
    quantized = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "float",
        quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True),
        device_map="cpu",
    )
    quantized.save_pretrained(tmp_path / "m")
    write_tokenizer(tmp_path / "m")
    train(quantized, tmp_path / "a", OWNER)
    # What the codes stand for, in float32: the quantized model itself rounds its activations.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "float", dtype=torch.float32
    )
    model.load_state_dict(dequantized(tmp_path / "m"))
    base = logits_of(model, TOKENS)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "a")
    expected = logits_of(model.merge_and_unload(), TOKENS)
    convert(tmp_path / "m", tmp_path / "m.qlm", type="f32", adapters=[(tmp_path / "a", 1.0)])
    check_agree(tmp_path / "m.qlm", TOKENS, expected, base)


def dequantized(directory: Path) -> dict[str, Any]:
    """Decode with the library, in float32."""
    from bitsandbytes.functional import int8_vectorwise_dequant
    from safetensors.torch import load_file

    state = load_file(directory / "model.safetensors")
    found = {}
    for name, values in state.items():
        if name.endswith(".weight"):
            scales = state.get(name.replace(".weight", ".SCB"))
            assert (values.dtype == torch.int8) == (scales is not None)
            found[name] = (
                values.float() if scales is None else int8_vectorwise_dequant(values, scales)
            )
    return found
