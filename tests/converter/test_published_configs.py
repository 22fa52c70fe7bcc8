"""`config.json` as the published models have it, word for word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_hf import shapes_of

from converter.hf_config import config_from_hugging_face
from qllama.config import ModelConfig, RopeScaling

SMOLLM2_135M = """{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576,
  "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
  "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 9,
  "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.40.1",
  "use_cache": true, "vocab_size": 49152
}"""

LLAMA_3_2_3B_INSTRUCT = """{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 128,
  "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
  "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 24, "num_hidden_layers": 28,
  "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256
}"""

MISTRAL_7B_V0_1 = """{
  "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0",
  "use_cache": true, "vocab_size": 32000
}"""

QWEN2_7B_INSTRUCT = """{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02,
  "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28,
  "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
  "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "transformers_version": "4.41.2", "use_cache": true, "use_sliding_window": false,
  "vocab_size": 152064
}"""

QWEN3_0_6B = """{
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
  "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
  "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
  "use_cache": true, "use_sliding_window": false, "vocab_size": 151936
}"""

PHI_3_MINI_4K_INSTRUCT = """{
  "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"],
  "attention_dropout": 0.0,
  "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config",
    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
  "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu",
  "hidden_size": 3072, "initializer_range": 0.02, "intermediate_size": 8192,
  "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
  "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": null,
  "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": true,
  "attention_bias": false, "vocab_size": 32064
}"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            SMOLLM2_135M,
            ModelConfig(
                "llama", 49152, 576, 1536, 30, 9, 3, 64, 8192, 1e-5, 1e5, tie_word_embeddings=True
            ),
        ),
        (
            LLAMA_3_2_3B_INSTRUCT,
            ModelConfig(
                *("llama", 128256, 3072, 8192, 28, 24, 8, 128, 131072, 1e-5, 5e5),
                rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
                tie_word_embeddings=True,
            ),
        ),
        (
            MISTRAL_7B_V0_1,
            ModelConfig(
                *("mistral", 32000, 4096, 14336, 32, 32, 8, 128, 32768, 1e-5),
                sliding_window=4096,
            ),
        ),
        (
            QWEN2_7B_INSTRUCT,
            ModelConfig(
                *("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, 32768, 1e-6, 1e6),
                attention_bias=True,
            ),
        ),
        (
            QWEN3_0_6B,
            ModelConfig(
                *("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, 40960, 1e-6, 1e6),
                tie_word_embeddings=True,
                qk_norm=True,
            ),
        ),
        (
            PHI_3_MINI_4K_INSTRUCT,
            ModelConfig(
                *("phi3", 32064, 3072, 8192, 32, 32, 32, 96, 4096, 1e-5), sliding_window=2047
            ),
        ),
    ],
    ids=["SmolLM2", "Llama 3.2", "Mistral", "Qwen2", "Qwen3", "Phi-3"],
)
def test_published_config_is_read_as_it_is_meant(text, expected):
    values = json.loads(text)
    assert config_from_hugging_face(Path("config.json"), values, shapes_of(values)) == expected
