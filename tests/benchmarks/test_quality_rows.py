"""Quality of weight types: what programs print, tables, noise and the errors of outputs."""

from __future__ import annotations

import click
import numpy as np
import pytest

from harness.layer_rows import LayerRow, layer_table
from harness.quality_rows import QualityRow, quality_table
from layer_errors import Matrix, output_error, quantized
from make_noisy import noisy
from quality import estimate

# Of llama-perplexity --kl-divergence, most lines left out.
SAID = """chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence
   1      17.9836 ±    3.2397       0.02154 ±    0.00629       0.00425 ±    0.00023

====== Perplexity statistics ======
Mean PPL(Q)                   :  11.839809 ±   0.546133
Mean PPL(base)                :  11.759745 ±   0.543061
Mean PPL(Q)/PPL(base)         :   1.006808 ±   0.001685

====== KL divergence statistics ======
Mean    KLD:   0.004108 ±   0.000067
Maximum KLD:   0.057895
Same top p: 96.259 ± 0.330 %
"""


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (r"Mean PPL\(Q\)", (11.839809, 0.546133)),
        ("Mean +KLD", (0.004108, 0.000067)),
        ("Same top p", (96.259, 0.330)),
    ],
)
def test_estimate_is_read_from_what_llama_perplexity_prints(label, expected):
    assert estimate(SAID, label) == expected


def test_estimate_without_its_line_is_refused():
    with pytest.raises(click.ClickException, match="expected a line 'Median KLD'"):
        estimate(SAID, "Median KLD")


def test_quality_table_has_a_column_a_measured_test():
    rows = [
        QualityRow("qllama", "q4", "q4.qlm", 80_000_000, 4.8, 12.0, 0.5, 0.02, 0.001, 0.9),
        QualityRow("llama.cpp", "Q8_0", "Q8_0.gguf", 144_000_000, 8.5, 11.0, 0.5, 0.004, 0, 0.96),
    ]
    rows[0].speeds = {"tg64": [100.0, 300.0, 120.0]}
    header, _, ours, theirs = quality_table(rows).splitlines()
    assert header.split("|")[-2].strip() == "tg64 t/s"
    assert [cell.strip() for cell in ours.split("|")[1:-1]] == [
        *("q4", "80.0", "4.80", "12.00 ± 0.50", "0.0200 ± 0.0010", "90.0%", "120"),
    ]
    assert theirs.split("|")[1].strip() == "llama.cpp Q8_0"
    assert theirs.split("|")[-2].strip() == ""


def test_layer_table_has_geometric_means_by_kind():
    errors = {"layer.0.q": 0.01, "layer.1.q": 0.04, "layer.0.down": 0.05, "layer.1.down": 0.05}
    row = LayerRow("ggml", "Q4_K", "importance", 4.5, errors)
    header, _, line = layer_table([row]).splitlines()
    assert [cell.strip() for cell in header.split("|")[4:-1]] == ["q", "down", "all"]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        *("ggml Q4_K", "importance", "4.50", "2.00", "5.00", "3.16"),
    ]


def test_output_error_is_relative_to_the_output():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((50, 32)).astype(np.float32)
    w = rng.standard_normal((16, 32)).astype(np.float32)
    assert output_error(inputs, w, w) == 0
    assert output_error(inputs, w, np.float32(1.1) * w) == pytest.approx(0.1, rel=1e-5)
    # A column that is never multiplied may err.
    inputs[:, 3] = 0
    other = w.copy()
    other[:, 3] += 1
    assert output_error(inputs, w, other) == 0


def test_quantized_matrix_has_the_bits_of_a_wide_one_and_is_nearer_the_more_it_is_told():
    rng = np.random.default_rng(0)
    # Inputs that differ in size and go together.
    mixing = rng.standard_normal((8, 64)) * np.linspace(0.2, 2, 64)
    inputs = (rng.standard_normal((900, 8)) @ mixing + 0.2).astype(np.float32)
    inputs += 0.2 * rng.standard_normal(inputs.shape, np.float32)
    w = rng.standard_normal((1024, 64)).astype(np.float32)
    matrix = Matrix(w, inputs[:450], inputs[450:])
    found = [quantized("q4", matrix, told) for told in ("", "importance", "feedback")]
    assert [bits for _, bits in found] == [4.5 + 64 / 4096] * 3
    plain, weighted, fed = (matrix.error(decoded) for decoded, _ in found)
    assert fed < 0.6 * weighted < weighted < plain < 0.1


def test_noise_is_in_proportion_to_the_steps_of_a_block():
    w = np.tile(np.arange(16, dtype=np.float16), (512, 4))
    w[:, 32:] *= 8
    changes = (noisy(w, 0.3, np.random.default_rng(0)).astype(np.float32) - w).reshape(-1, 2, 32)
    assert changes[:, 0].std() == pytest.approx(0.3, rel=0.03)
    assert changes[:, 1].std() == pytest.approx(2.4, rel=0.03)
