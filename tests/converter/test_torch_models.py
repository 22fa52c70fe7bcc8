"""Models of transformers, saved by PyTorch in every layout, against transformers itself."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_hf import write_json, write_tokenizer

from converter.pipeline import convert
from qllama.format.reader import QlmFile
from qllama.model.reference import forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
hub = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.reference

PROMPT = [1, *range(20, 120)]
SMALL = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES = {
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, untied": ("Llama", {"tie_word_embeddings": False}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": 16, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "phi3": ("Phi3", {"pad_token_id": 0}),
}
IN_META_TOO = {
    "llama, tied": {},
    "llama, untied": {},
    # params.json names no factor for a model so small.
    "llama 3.1": None,
    "mistral": {"hidden_dim": 96, "head_dim": 16, "sliding_window": 16, "rope_theta": 10000.0},
}


def model_of(name, dtype=torch.float32):
    family, changes = FAMILIES[name]
    torch.manual_seed(4)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.copy_(key.endswith("norm.weight") + 0.2 * noise)
            else:
                # So that signals keep their size.
                parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
    return model.to(dtype).eval()


def logits_of(model):
    with torch.no_grad():
        return model.float()(torch.tensor([PROMPT])).logits[0].numpy()


def write_bin(directory, model, shard_size="40KB"):
    """As `save_pretrained(safe_serialization=False)` did until transformers 5."""
    directory.mkdir()
    hub.save_torch_state_dict(
        model.state_dict(), directory, safe_serialization=False, max_shard_size=shard_size
    )
    return around(directory, model)


def write_safetensors(directory, model):
    model.save_pretrained(directory, max_shard_size="40KB")
    return around(directory, model)


def around(directory, model):
    model.config.save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def write_meta(directory, model, n_shards, embedding_axis, params):
    """By the inverse of transformers' converter; shards are views of one storage a layer."""
    directory.mkdir()
    c = model.config
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    names = {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo"}
    shards = [{} for _ in range(n_shards)]
    for name, tensor in model.state_dict().items():
        tensor = tensor.clone()
        if "q_proj" in name or "k_proj" in name:
            halves = tensor.view(-1, 2, head_dim // 2, c.hidden_size)
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        name = name.removeprefix("model.").replace("self_attn", "attention")
        for old, new in {
            **names,
            "embed_tokens": "tok_embeddings",
            "lm_head": "output",
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "ffn_norm",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.down_proj": "feed_forward.w2",
            "mlp.up_proj": "feed_forward.w3",
        }.items():
            name = name.replace(old, new)
        axis = 1 if "wo" in name or "w2" in name else 0
        axis = embedding_axis if "tok_embeddings" in name else axis
        pieces = [tensor] * n_shards if tensor.ndim == 1 else tensor.chunk(n_shards, axis)
        for shard, piece in zip(shards, pieces, strict=True):
            shard[name] = piece
    for i, shard in enumerate(shards):
        shard["rope.freqs"] = torch.ones(head_dim // 2)
        torch.save(shard, directory / f"consolidated.{i:02}.pth")
    if params is None:
        model.config.save_pretrained(directory)
        (directory / "config.json").rename(directory / "params.json")
    else:
        fields = {
            "dim": c.hidden_size,
            "n_layers": c.num_hidden_layers,
            "n_heads": c.num_attention_heads,
            "n_kv_heads": c.num_key_value_heads,
            "norm_eps": c.rms_norm_eps,
            "multiple_of": 32,
            "ffn_dim_multiplier": 0.5,
            "vocab_size": -1,
        }
        write_json(directory / "params.json", fields | params)
    write_tokenizer(directory)
    return directory


def check_logits(name, directory, model):
    """Compare in float32 arithmetic; a wrong row order or frequency is off by several units."""
    out = directory.with_suffix(".qlm")
    convert(directory, out, "f32")
    with QlmFile.open(out) as file:
        found = forward(file, PROMPT)
    expected = logits_of(model)
    difference = np.abs(found - expected).max()
    print(f"{name}: {difference:.1e} of {np.abs(expected).max():.1f}")
    assert difference < 1e-3
    assert np.abs(expected).max() > 2


@pytest.mark.parametrize("name", FAMILIES)
def test_bin_checkpoint_gives_the_logits_of_transformers(tmp_path, name):
    model = model_of(name)
    check_logits(name, write_bin(tmp_path / "model", model), model)


@pytest.mark.parametrize("name", IN_META_TOO)
def test_meta_checkpoint_gives_the_logits_of_transformers(tmp_path, name):
    model = model_of(name)
    directory = write_meta(tmp_path / "model", model, 2, 0, IN_META_TOO[name])
    check_logits(name, directory, model)


@pytest.mark.parametrize("name", IN_META_TOO)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torch_and_safetensors_and_meta_give_the_same_bytes(tmp_path, name, dtype):
    model = model_of(name, dtype)
    params = IN_META_TOO[name]
    sources = [
        write_safetensors(tmp_path / "safetensors", model),
        write_bin(tmp_path / "bin", model),
        write_bin(tmp_path / "one bin", model, "1GB"),
        write_meta(tmp_path / "meta 1", model, 1, 0, params),
        write_meta(tmp_path / "meta 4 by columns", model, 4, 1, params),
    ]
    assert len(list((tmp_path / "bin").glob("*.bin"))) > 2
    held = []
    for source in sources:
        convert(source, tmp_path / f"{source.name}.qlm", "q4")
        with QlmFile.open(tmp_path / f"{source.name}.qlm") as file:
            held.append({tensor: file.data(tensor).tobytes() for tensor in file.tensors})
    assert all(tensors == held[0] for tensors in held)


def test_old_bin_of_a_whole_state_dict_is_converted(tmp_path):
    model = model_of("llama, untied", torch.float16)
    directory = tmp_path / "model"
    directory.mkdir()
    path = directory / "pytorch_model.bin"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    convert(around(directory, model), tmp_path / "out.qlm", "f16")
    state = model.state_dict()
    with QlmFile.open(tmp_path / "out.qlm") as file:
        name = "model.layers.1.mlp.down_proj.weight"
        np.testing.assert_array_equal(file.matrix(name), state[name].float().numpy())
