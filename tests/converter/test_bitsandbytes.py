"""LLM.int8 checkpoints: codes and scales joined, every other quantization refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_hf import LAYERS, config_of, random_weights, shapes_of, write_repository

from converter.sources.registry import open_source
from qllama.errors import ConversionError, UnsupportedModelError

Q_PROJ = "model.layers.1.self_attn.q_proj"

# What transformers 5.23 writes for BitsAndBytesConfig(load_in_8bit=True).
INT8 = {
    "_load_in_4bit": False,
    "_load_in_8bit": True,
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_use_double_quant": False,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": None,
    "llm_int8_threshold": 6.0,
    "load_in_4bit": False,
    "load_in_8bit": True,
    "quant_method": "bitsandbytes",
}


def quantized(weights):
    """Quantize the projections as the paper has it, to the tensors bitsandbytes saves."""
    found = {}
    for name, values in weights.items():
        if not name.endswith("_proj.weight"):
            found[name] = values.astype(np.float16)
            continue
        module = name.removesuffix(".weight")
        scales = np.abs(values).max(axis=1).astype(np.float32)
        found[name] = np.rint(values / scales[:, None] * 127).astype(np.int8)
        found[f"{module}.SCB"] = scales
        found[f"{module}.weight_format"] = np.array(0, np.uint8)
    return found


def write_int8(directory, changes=None, quantization=INT8, **config):
    config = config_of(quantization_config=quantization, **config)
    tensors = {**quantized(random_weights(shapes_of(config))), **(changes or {})}
    tensors = {name: values for name, values in tensors.items() if values is not None}
    return write_repository(directory, config, tensors), tensors


def test_int8_matrices_are_codes_times_scales(tmp_path):
    directory, tensors = write_int8(tmp_path / "m")
    source = open_source(directory)
    n_joined = 0
    for name, tensor in source.tensors.items():
        found = tensor.read(0, tensor.shape[0])
        stored = tensors[name]
        if stored.dtype == np.int8:
            n_joined += 1
            scales = tensors[name.replace(".weight", ".SCB")].astype(np.float64)
            expected = stored * (scales / 127)[:, None]
            assert tensor.source_type == "LLM.int8"
            # Two roundings of float32 and that of 1 / 127 itself.
            np.testing.assert_allclose(found, expected, rtol=3 * 2.0**-24, atol=0)
            np.testing.assert_array_equal(tensor.read(3, 9), found[3:9])
        else:
            np.testing.assert_array_equal(found, stored.astype(np.float32))
    assert n_joined == 7 * LAYERS


def test_int8_fused_matrices_are_joined_and_split(tmp_path):
    config = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    directory, tensors = write_int8(tmp_path / "m", sliding_window=None, **config)
    fused = "model.layers.0.self_attn.qkv_proj"
    expected = tensors[f"{fused}.weight"] * (tensors[f"{fused}.SCB"] / 127)[:, None]
    found = open_source(directory).tensors["model.layers.0.self_attn.k_proj.weight"]
    np.testing.assert_allclose(found.read(0, 32), expected[64:96], rtol=3 * 2.0**-23)


@pytest.mark.parametrize(
    "declared",
    [
        {"load_in_8bit": True, "llm_int8_threshold": 6.0},
        {**INT8, "llm_int8_skip_modules": ["lm_head"]},
    ],
)
def test_int8_is_recognized_in_its_spellings(tmp_path, declared):
    directory, _ = write_int8(tmp_path / "m", quantization=declared)
    assert open_source(directory).tensors[f"{Q_PROJ}.weight"].source_type == "LLM.int8"


@pytest.mark.parametrize("missing", [f"{Q_PROJ}.weight_format"])
def test_int8_without_a_format_is_by_rows(tmp_path, missing):
    directory, _ = write_int8(tmp_path / "m", {missing: None})
    assert open_source(directory).tensors[f"{Q_PROJ}.weight"].source_type == "LLM.int8"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{Q_PROJ}.SCB": None}, rf"tensor '{Q_PROJ}\.weight': .*found int8"),
        ({f"{Q_PROJ}.weight": None}, rf"'{Q_PROJ}\.SCB': expected {Q_PROJ}\.weight of .*nothing"),
        ({f"{Q_PROJ}.SCB": np.ones(63, np.float32)}, r"codes with \(63,\) rows .*int8 \(64, 64\)"),
        ({f"{Q_PROJ}.SCB": np.ones(64, np.int32)}, "the scales as float32, found int32"),
        (
            {f"{Q_PROJ}.weight": np.ones((64, 64), np.float16)},
            r"expected .*int8 codes .*found float16 \(64, 64\)",
        ),
        ({f"{Q_PROJ}.weight_format": np.array(2, np.uint8)}, "in the order col_turing, expected"),
        ({f"{Q_PROJ}.weight_format": np.array(9, np.uint8)}, "in the order 9, expected row"),
        *(
            ({f"{Q_PROJ}.weight_format": wrong}, r"weight_format': expected one integer, found")
            for wrong in (
                np.zeros((1, 3), np.uint8),
                np.zeros(0, np.uint8),
                np.full(1, np.nan, np.float32),
            )
        ),
        (
            {"model.norm.weight_format": np.array(0, np.uint8)},
            r"norm\.weight_format': expected one of the types .*uint8",
        ),
    ],
)
def test_int8_tensors_that_do_not_belong_together_are_refused(tmp_path, changes, message):
    directory, _ = write_int8(tmp_path / "m", changes)
    with pytest.raises((ConversionError, UnsupportedModelError), match=message) as caught:
        open_source(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({**INT8, "load_in_4bit": True, "load_in_8bit": False}, "4-bit weights of bitsandbytes"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "4-bit weights of bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "weights that gptq quantized"),
        ({"quant_method": "awq", "bits": 4}, "weights that awq quantized"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "weights that fp8 quantized"),
        ({"quant_method": "compressed-tensors"}, "weights that compressed-tensors quantized"),
        ("int8", "no object that describes"),
    ],
)
def test_other_quantizations_are_refused_by_name(tmp_path, declared, message):
    directory = write_repository(tmp_path / "m", config_of(quantization_config=declared))
    expected = rf"config\.json: quantization_config = .*: {message}.*, which cannot be read"
    with pytest.raises(UnsupportedModelError, match=expected) as caught:
        open_source(directory)
    assert "\n" not in str(caught.value)
