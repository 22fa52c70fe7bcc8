"""The real model against itself at full precision, and against another implementation.

Text: the language reference that Python ships for `help()` (`pydoc_data.topics`),
English technical prose; its wording differs a little between versions of Python.
Scored as llama.cpp does it: windows of 512 tokens, the second half of each.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from qllama import Llama

WINDOW = 512
N_WINDOWS = 8


def prose() -> str:
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics))[:30000]


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def mean_kl(base: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence of `other` from `base`, in nats."""
    p, q = log_softmax(base), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def same_top(base: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    return float((base.argmax(-1) == other.argmax(-1)).mean())


def logits_of(
    path: Path, windows: list[list[int]], kv_type: str = "f16"
) -> npt.NDArray[np.float32]:
    """Logits of the second half of each window: float32, (n, vocab_size)."""
    with Llama(path, n_ctx=WINDOW, kv_type=kv_type) as llm:
        return np.concatenate([llm.logits(window)[WINDOW // 2 :] for window in windows])


@pytest.fixture(scope="module")
def windows(smollm2_f16: Path) -> list[list[int]]:
    with Llama(smollm2_f16, n_ctx=WINDOW) as llm:
        tokens = llm.tokenize(prose(), add_bos=False)
    return [tokens[i * WINDOW : (i + 1) * WINDOW] for i in range(N_WINDOWS)]


@pytest.fixture(scope="module")
def f16_logits(smollm2_f16: Path, windows: list[list[int]]) -> npt.NDArray[np.float32]:
    return logits_of(smollm2_f16, windows)


# The bounds are llama.cpp's own figures for this model, on 30 KB of English prose: Q8_0 has
# 0.0041, and Q4_K_M, whose file is a quarter larger than `q4`'s, 0.052.
# (The weights come from a 4-bit grid, which `q4` finds again: on weights that were
# never quantized it loses more, see docs/quantization.md.)
@pytest.mark.parametrize(("weight_type", "bound"), [("q8", 0.0041), ("q4", 0.052)])
def test_preset_against_f16_stays_within_llama_cpp_divergence(
    weight_type: str,
    bound: float,
    convert_smollm2: Callable[[str], Path],
    windows: list[list[int]],
    f16_logits: npt.NDArray[np.float32],
) -> None:
    logits = logits_of(convert_smollm2(weight_type), windows)
    divergence = mean_kl(f16_logits, logits)
    print(f"{weight_type}: KL {divergence:.5f}, same top {same_top(f16_logits, logits):.4f}")
    assert divergence <= bound


# Beside int8 activations the cache's rounding hardly counts; alone it must stay well under
# what the activations cost (`q8` above).
@pytest.mark.parametrize(("weight_type", "bound"), [("f16", 0.0041 / 4), ("q4", 0.052)])
def test_cache_of_q8_against_f16_stays_within_llama_cpp_divergence(
    weight_type: str,
    bound: float,
    convert_smollm2: Callable[[str], Path],
    windows: list[list[int]],
    f16_logits: npt.NDArray[np.float32],
) -> None:
    logits = logits_of(convert_smollm2(weight_type), windows, "q8")
    divergence, top = mean_kl(f16_logits, logits), same_top(f16_logits, logits)
    print(f"{weight_type}, q8 cache: KL {divergence:.5f}, same top {top:.4f}")
    assert 0 < divergence <= bound


@pytest.mark.reference
def test_f16_against_transformers_agrees(
    smollm2_gguf: Path, smollm2_f16: Path, windows: list[list[int]]
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    )
    with torch.no_grad():
        expected = model(torch.tensor(windows[:1])).logits[0].numpy()
    with Llama(smollm2_f16, n_ctx=WINDOW) as llm:
        logits = llm.logits(windows[0])
    print(f"f16: KL {mean_kl(expected, logits):.3g}, same top {same_top(expected, logits):.4f}")
    assert mean_kl(expected, logits) < 1e-5
    assert same_top(expected, logits) > 0.995
