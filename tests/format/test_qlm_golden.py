"""One tiny file, byte for byte: what version 1 is, whatever the code says."""

from __future__ import annotations

import numpy as np

from qllama.config import ModelConfig, TokenizerConfig
from qllama.format import QlmFile, QlmWriter, TensorSpec

HEADER = (
    '{"config":{"model_type":"llama","vocab_size":2,"hidden_size":2,"intermediate_size":2,'
    '"num_hidden_layers":1,"num_attention_heads":1,"num_key_value_heads":1,"head_dim":2,'
    '"max_position_embeddings":8,"rms_norm_eps":1e-05,"rope_theta":10000.0,"rope_scaling":'
    '{"rope_type":"linear","factor":2.0,"low_freq_factor":1.0,"high_freq_factor":4.0,'
    '"original_max_position_embeddings":null,"attention_factor":null,"beta_fast":32.0,'
    '"beta_slow":1.0},"tie_word_embeddings":false,"attention_bias":false,'
    '"attention_output_bias":false,"mlp_bias":false,"qk_norm":false,"sliding_window":null,'
    '"hidden_act":"silu"},"tokenizer":{"kind":"sentencepiece","bos_token_id":1,'
    '"eos_token_ids":[2],"unk_token_id":null,"pad_token_id":null,"add_bos_token":true,'
    '"add_eos_token":false,"chat_template":"ü","prefix_at_start_only":false},'
    '"recipe":{"preset":"f32"},"provenance":{"source":"none"},'
    '"tokenizer_blob":{"offset":0,"n_bytes":4,'
    '"crc32":"b07fa5cc"},"tensors":[{"name":"a","type":"f32","shape":[2],'
    '"layout":"row_major","offset":64,"n_bytes":8,"crc32":"c3872656","quality":null},'
    '{"name":"b","type":"q4","shape":[1,2],"layout":"tile16","offset":128,"n_bytes":416,'
    '"crc32":"57588512","quality":{"rmse":0.25}}]}'
).encode()
PRELUDE = bytes.fromhex(
    "89514c4d0d0a1a0a 01000000 f6011a51 9104000000000000"
    "0000010000000000 2002010000000000 000000000000000000000000000000000000000000000000"
)
VECTOR = bytes.fromhex("0000803f 000000c0")
MATRIX = bytes(range(16)) * 26
FILE = (
    (PRELUDE + HEADER).ljust(65536, b"\0")
    + b"blob".ljust(64, b"\0")
    + VECTOR.ljust(64, b"\0")
    + MATRIX
)


def test_writer_tiny_file_equals_golden_bytes(tmp_path):
    path = tmp_path / "tiny.qlm"
    config = ModelConfig.from_dict(
        {
            "model_type": "llama",
            "vocab_size": 2,
            "hidden_size": 2,
            "intermediate_size": 2,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 2,
            "max_position_embeddings": 8,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        }
    )
    tokenizer = TokenizerConfig("sentencepiece", 1, (2,), add_bos_token=True, chat_template="ü")
    tensors = [TensorSpec("a", "f32", (2,)), TensorSpec("b", "q4", (1, 2))]
    with QlmWriter(
        path, config, tokenizer, b"blob", tensors, {"preset": "f32"}, {"source": "none"}
    ) as writer:
        writer.write("a", VECTOR)
        writer.write("b", MATRIX)
        writer.set_quality("b", {"rmse": 0.25})
    assert path.read_bytes() == FILE


def test_reader_golden_bytes_give_their_values(tmp_path):
    path = tmp_path / "tiny.qlm"
    path.write_bytes(FILE)
    file = QlmFile.open(path)
    file.verify()
    assert file.config.rope_scaling is not None
    assert file.config.rope_scaling.factor == 2.0
    assert file.tokenizer.chat_template == "ü"
    assert file.tokenizer_blob == b"blob"
    assert file.recipe == {"preset": "f32"}
    assert file.provenance == {"source": "none"}
    assert file.tensors["b"].quality == {"rmse": 0.25}
    np.testing.assert_array_equal(file.vector("a"), np.float32([1, -2]))
    assert file.data("b").tobytes() == MATRIX
