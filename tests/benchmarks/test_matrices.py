"""The products that kernels.py times, on a model made for it."""

from __future__ import annotations

from contextlib import closing

import pytest

import make_models
from converter.pipeline import convert
from harness.matrices import HEAD, MatrixBench
from qllama.format import QlmFile

SHAPE = make_models.Shape(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=96,
)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setattr(make_models, "_VOCAB_SIZE", 300)
    make_models.write_gguf(SHAPE, "tiny", tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "tiny.qlm", type="q8_0")
    with (
        QlmFile.open(tmp_path / "tiny.qlm") as file,
        closing(MatrixBench(file, n_threads=2, n_batch=8)) as bench,
    ):
        yield bench


def test_matrix_bench_times_every_kind_of_matrix(bench):
    kinds = {matrices.name: matrices for matrices in bench.kinds()}
    assert [name.rpartition(".")[2] for name in kinds] == [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        HEAD,
    ]
    down = kinds["mlp.down_proj"]
    assert (down.rows, down.columns, len(down.linears)) == (64, 96, 2)
    # 16 rows and 32 columns are 512 codes and 16 scales of 2 bytes.
    assert down.n_bytes == 2 * 4 * 3 * (512 + 32)
    assert down.n_ops(8) == 2 * 8 * 64 * 96 * 2
    assert kinds[HEAD].n_bytes == 19 * 2 * (512 + 32)
    for matrices in kinds.values():
        for n_tokens in (1,) if matrices.name == HEAD else (1, 8):
            assert bench.seconds(matrices, n_tokens) > 0
    with pytest.raises(ValueError, match="8 tokens are too many"):
        bench.seconds(kinds[HEAD], 8)


def test_matrix_bench_multiplies_what_its_buffers_hold(bench):
    down = next(matrices for matrices in bench.kinds() if matrices.is_hidden)
    model = bench._engine._buffers.model[0]
    bench._out[:] = 7
    bench.seconds(down, 8)
    # No activation has been packed: they are zeros.
    assert (bench._out[: 8 * 64] == 0).all()
    assert (bench._out[8 * 64 :] == 7).all()
    assert model["hidden_q8"] != 0
