"""A complete, tiny `.qlm` file: one layer, a byte-level tokenizer, zero weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers

from qllama.config import ModelConfig, TokenizerConfig
from qllama.format import QlmWriter, TensorSpec
from qllama.format.spec import tensor_n_bytes

BEGIN, END = 256, 257

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=258,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    rms_norm_eps=9.999999747378752e-06,  # 1e-5 that was a float32 once
    tie_word_embeddings=True,
)
LAYER = "model.layers.0."
SPECS = (
    TensorSpec("model.embed_tokens.weight", "q8_0", (258, 32)),
    TensorSpec(f"{LAYER}input_layernorm.weight", "f32", (32,)),
    TensorSpec(f"{LAYER}self_attn.q_proj.weight", "q4", (32, 32)),
    TensorSpec(f"{LAYER}self_attn.k_proj.weight", "q4", (16, 32)),
    TensorSpec(f"{LAYER}self_attn.v_proj.weight", "q4", (16, 32)),
    TensorSpec(f"{LAYER}self_attn.o_proj.weight", "q4", (32, 32)),
    TensorSpec(f"{LAYER}post_attention_layernorm.weight", "f32", (32,)),
    TensorSpec(f"{LAYER}mlp.gate_proj.weight", "q4", (64, 32)),
    TensorSpec(f"{LAYER}mlp.up_proj.weight", "q4", (64, 32)),
    TensorSpec(f"{LAYER}mlp.down_proj.weight", "q4", (32, 64)),
    TensorSpec("model.norm.weight", "f32", (32,)),
)


def tokenizer_json() -> bytes:
    """One token a byte, `<|begin|>` 256 and `<|end|>` 257."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|begin|>", "<|end|>"])
    return backend.to_str().encode()


def write_tiny_qlm(
    path: Path,
    *,
    vocab_size: int = 258,
    add_bos: bool = True,
    provenance: dict[str, object] | None = None,
) -> Path:
    """Write the file to `path`; tokens past 257 have no spelling."""
    tokenizer = TokenizerConfig(
        "tokenizers",
        bos_token_id=BEGIN,
        eos_token_ids=(END,),
        add_bos_token=add_bos,
        chat_template="{{ messages }}",
    )
    config = replace(CONFIG, vocab_size=vocab_size)
    specs = (replace(SPECS[0], shape=(vocab_size, 32)), *SPECS[1:])
    recipe = {"name": "q4"}
    provenance = provenance or {"source": "tiny.gguf", "sha256": "0" * 64}
    with QlmWriter(path, config, tokenizer, tokenizer_json(), specs, recipe, provenance) as file:
        for spec in specs:
            file.write(spec.name, np.zeros(tensor_n_bytes(spec), np.uint8))
    return path
