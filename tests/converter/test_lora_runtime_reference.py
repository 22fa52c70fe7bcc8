"""Adapters that PEFT saved, computed beside the model: the same logits as PEFT's."""

from __future__ import annotations

import numpy as np
import pytest
from test_hf_reference import TOKENS, random_model, save
from test_lora_reference import ADAPTERS, OWNER, logits_of, train

from converter.pipeline import convert
from qllama import Llama
from qllama.errors import UnsupportedModelError

pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

MORE_THAN_UPDATES = {
    "trained biases",
    "all biases",
    "whole modules",
    "a whole layer's mlp",
    "whole tied embedding",
    "whole head of a tied model",
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_lora_beside_the_model_computes_what_peft_does(tmp_path, name):
    family, changes, fields = ADAPTERS[name]
    model = random_model(family, changes)
    directory = save(model, tmp_path / "m", "float32")
    base = logits_of(model, TOKENS)
    trained = logits_of(train(model, tmp_path / "a", fields), TOKENS)
    convert(directory, tmp_path / "m.qlm", type="f32")
    convert(directory, tmp_path / "merged.qlm", type="f32", adapters=[(tmp_path / "a", 1.0)])
    with Llama(tmp_path / "merged.qlm") as merged:
        # What half-precision keys and values and other orders of sums do.
        rounding = np.abs(merged.logits(TOKENS) - trained).max()
    with Llama(tmp_path / "m.qlm") as llm:
        if name in MORE_THAN_UPDATES:
            with pytest.raises(UnsupportedModelError, match="merge it instead"):
                llm.lora = tmp_path / "a"
            return
        llm.lora = tmp_path / "a"
        difference = np.abs(llm.logits(TOKENS) - trained).max()
    change = np.abs(trained - base).max()
    print(f"{difference:.1e}, merged {rounding:.1e}; the adapter changes {change:.1f}")
    assert difference < 4 * rounding
    assert change > 20 * rounding


def test_lora_scale_beside_the_model_is_that_of_peft(tmp_path):
    import peft

    model = random_model("llama", {})
    directory = save(model, tmp_path / "m", "float32")
    base = logits_of(model, TOKENS)
    model = train(model, tmp_path / "a", OWNER).unload()
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "a", adapter_name="a")
    for module in adapted.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_scale("a", 0.5)
    expected = logits_of(adapted, TOKENS)
    convert(directory, tmp_path / "m.qlm", type="f32")
    with Llama(tmp_path / "m.qlm") as llm:
        rounding = np.abs(llm.logits(TOKENS) - base).max()
        llm.lora = {tmp_path / "a": 0.5}
        assert np.abs(llm.logits(TOKENS) - expected).max() < 4 * rounding
        llm.lora = tmp_path / "a"
        assert np.abs(llm.logits(TOKENS) - expected).max() > 20 * rounding
