"""Which modules, ranks and scales an adapter's config means: PEFT's own rules."""

from __future__ import annotations

import pytest
from lora_sample import ALPACA, write_adapter

from converter.peft_config import read_adapter_config

NAMES = [
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.self_attn.v_proj",
    "model.layers.11.mlp.up_proj",
    "lm_head",
]

# Every way of naming modules, and those of NAMES that peft 0.21's own functions pick.
TARGET_CASES = [
    ({"target_modules": ["q_proj"]}, [1, 2]),
    ({"target_modules": ["proj"]}, []),
    ({"target_modules": ["model.layers.1.self_attn.q_proj", "lm_head"]}, [2, 5]),
    ({"target_modules": r".*\.(q|up)_proj"}, [1, 2, 4]),
    ({"target_modules": r"q_proj"}, []),
    ({"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]}, [1, 2]),
    ({"target_modules": ["q_proj"], "exclude_modules": r".*\.1\..*"}, [1]),
    ({"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 11]}, [2, 4]),
    ({"target_modules": ["q_proj"], "layers_to_transform": 0}, [1]),
    ({"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0]}, [1, 5]),
    (
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        [2],
    ),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h"]}, []),
    ({"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]}, [1, 2]),
    ({"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["layers.1"]}, [1]),
]

# rank_pattern or alpha_pattern, and what each of NAMES gets; 8 is the default.
PATTERN_CASES = [
    ({"q_proj": 2}, [8, 2, 2, 8, 8, 8]),
    ({"proj": 2}, [8, 8, 8, 8, 8, 8]),
    ({".*_proj": 2}, [8, 2, 2, 2, 2, 8]),
    ({"^model.layers.1.self_attn.q_proj": 2, "q_proj": 3}, [8, 3, 2, 8, 8, 8]),
    ({"q_proj": 3, "layers.1.self_attn.q_proj": 2}, [8, 3, 3, 8, 8, 8]),
    ({"^q_proj": 2}, [8, 8, 8, 8, 8, 8]),
    ({"lm_head|q_proj": 2}, [8, 2, 2, 8, 8, 2]),
]


@pytest.mark.parametrize(("fields", "expected"), TARGET_CASES)
def test_adapter_config_targets_are_peft_s(tmp_path, fields, expected):
    config = read_adapter_config(write_adapter(tmp_path / "a", **fields))
    assert [i for i, name in enumerate(NAMES) if config.targets(name)] == expected


@pytest.mark.parametrize(("patterns", "expected"), PATTERN_CASES)
def test_adapter_config_patterns_are_peft_s(tmp_path, patterns, expected):
    directory = write_adapter(tmp_path / "a", rank_pattern=patterns, lora_alpha=1)
    config = read_adapter_config(directory)
    assert [config.rank(name) for name in NAMES] == expected
    assert [config.scaling(name) for name in NAMES] == [1 / r for r in expected]


@pytest.mark.reference
@pytest.mark.parametrize(("fields", "expected"), TARGET_CASES)
def test_adapter_config_targets_agree_with_peft(fields, expected):
    pytest.importorskip("peft")
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(**fields)
    found = [check_target_module_exists(config, name) for name in NAMES]
    taken = [i for i, f in enumerate(found) if f and type(f).__name__ != "_ExcludedModule"]
    assert taken == expected


@pytest.mark.reference
@pytest.mark.parametrize(("patterns", "expected"), PATTERN_CASES)
def test_adapter_config_patterns_agree_with_peft(patterns, expected):
    pytest.importorskip("peft")
    from peft.utils.other import get_pattern_key

    assert [patterns.get(get_pattern_key(patterns, name), 8) for name in NAMES] == expected


def test_adapter_config_of_the_owner_s_example_is_read(tmp_path):
    config = read_adapter_config(write_adapter(tmp_path / "a"))
    assert (config.r, config.scaling("model.layers.31.self_attn.q_proj")) == (8, 2.0)
    assert config.base_model == ALPACA["base_model_name_or_path"]


@pytest.mark.parametrize("off", [None, False, [], {}, 0])
def test_adapter_config_unknown_field_that_is_off_is_harmless(tmp_path, off):
    read_adapter_config(write_adapter(tmp_path / "a", new_in_2031=off, use_dora=off))
