"""Activations of traces against transformers: the same modules, the same numbers.

Names are those of transformers' modules, so hooks are put there by name. Keys and values
are rounded to half precision there too, as the cache does.

How the comparison is bounded: `test_forward` derives that the compiled model is one whose
weights are off by at most (k / 2 + 8) roundings of float32. So transformers' model is
perturbed like that four times, with random signs, and each activation may differ by four
times of what that does to it; where a number is close to a tie of half precision, both
may round it differently, and so may the perturbed models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from test_hf_reference import random_model, save

from converter.pipeline import convert
from qllama import Llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.llama.modeling_llama")

pytestmark = pytest.mark.reference

U = 2.0**-24
TOKENS = np.random.default_rng(0).integers(3, 60, size=24).tolist()


def activations(model: Any, names: list[str]) -> dict[str, np.ndarray]:
    """What transformers' modules of these names take or give for the tokens."""
    seen: dict[str, np.ndarray] = {}
    handles = []
    head_dim = model.model.layers[0].self_attn.head_dim

    def note(name: str, value: Any) -> None:
        array = (value[0] if isinstance(value, tuple) else value).detach()[0].numpy()
        if name.endswith(("q_proj.output", "k_proj.output", "v_proj.output", "o_proj.input")):
            array = array.reshape(len(array), -1, head_dim)
        seen[name] = array.copy()

    for name in names:
        path, _, side = name.rpartition(".")
        if name == "logits":
            path, side = "lm_head", "output"
        elif side not in ("input", "output"):
            continue  # not of a module: see `attention`
        module = model.get_submodule(path if path == "lm_head" else f"model.{path}")

        def hook(_module: Any, args: Any, kwargs: Any, out: Any, n: str = name) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            note(n, given if n.endswith(".input") else out)

        handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def attention(module: Any, q: Any, k: Any, v: Any, mask: Any, **how: Any) -> Any:
        layer = f"layers.{module.layer_idx}.self_attn."
        out, weights = eager(module, q, k.half().float(), v.half().float(), mask, **how)
        seen[layer + "q"] = q[0].swapaxes(0, 1).numpy()
        seen[layer + "k"] = k[0].swapaxes(0, 1).numpy()
        seen[layer + "weights"] = weights[0].numpy()
        return out, weights

    eager = modeling.eager_attention_forward
    modeling.eager_attention_forward = attention
    try:
        with torch.no_grad():
            model(torch.tensor([TOKENS]), use_cache=False)
    finally:
        modeling.eager_attention_forward = eager
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def perturbed(model: Any, seed: int) -> Iterator[None]:
    """Have a model's matrices be off by the roundings of their products."""
    generator = torch.Generator().manual_seed(seed)
    matrices = {p.data_ptr(): p for p in model.parameters() if p.ndim == 2}.values()
    kept = [p.detach().clone() for p in matrices]
    with torch.no_grad():
        for p in matrices:
            signs = torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
            p.mul_(1 + (p.shape[1] / 2 + 8) * U * signs)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, values in zip(matrices, kept, strict=True):
                p.copy_(values)


def assert_same(llm: Llama, model: Any) -> None:
    """Compare every activation but scores, which transformers does not hold."""
    trace = llm.trace(TOKENS)
    names = [name for name in trace if not name.endswith(".scores")]
    expected = activations(model, names)
    assert set(expected) == set(names)
    bounds = dict.fromkeys(names, 0.0)
    for seed in range(4):
        with perturbed(model, seed):
            for name, values in activations(model, names).items():
                spread = float(np.abs(values - expected[name]).max())
                bounds[name] = max(bounds[name], 4 * spread)
    for name in names:
        assert trace[name].shape == expected[name].shape, name
        error = float(np.abs(trace[name] - expected[name]).max())
        assert error <= bounds[name], f"{name}: off by {error}, expected {bounds[name]} at most"
        # A mistake, a row or position off by one, is as large as the activation.
        assert bounds[name] < 0.05 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 1, "head_dim": 32}, {"attention_bias": True, "mlp_bias": True}],
    ids=["grouped heads", "one key head", "biases"],
)
def test_trace_random_model_has_the_activations_of_transformers(tmp_path, changes):
    source = save(random_model("llama", changes), tmp_path / "model", "float32")
    convert(source, tmp_path / "model.qlm", type="f32", check=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    )
    with Llama(tmp_path / "model.qlm") as llm:
        assert_same(llm, model)


def test_trace_real_model_has_the_activations_of_transformers(smollm2_gguf, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent,
        gguf_file=smollm2_gguf.name,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    convert(smollm2_gguf, tmp_path / "model.qlm", type="f32", check=False)
    with Llama(tmp_path / "model.qlm", n_ctx=64) as llm:
        assert_same(llm, model)
