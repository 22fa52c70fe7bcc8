"""`config.json` with values of the wrong kind in every key: read or refused, in one line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_hf import LLAMA, config_of, shapes_of

from converter.hf_config import _USED as USED_KEYS
from converter.hf_config import FAMILIES, config_from_hugging_face
from qllama.errors import ConversionError, UnsupportedModelError

PATH = Path("config.json")
ODD_VALUES = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        10**400,
        0.5,
        -0.0,
        math.inf,
        math.nan,
        "",
        "x",
        "full_attention",
    ),
    *([], [1], ["full_attention"], [[]], {}, {"rope_type": "yarn"}, {"a": {"b": [{}]}}),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_hf_config_odd_values_are_read_or_refused_in_one_line(family):
    names = shapes_of({**LLAMA, "model_type": family})
    messages = []
    for key in sorted({*LLAMA, *USED_KEYS}):
        for value in ODD_VALUES:
            for more in ({}, {"use_sliding_window": True}):
                values = config_of(**{"model_type": family, **more, key: value})
                try:
                    config_from_hugging_face(PATH, values, names)
                except (ConversionError, UnsupportedModelError) as error:
                    messages.append(str(error))
    assert len(messages) > 400
    assert not [m for m in messages if "\n" in m or not m.startswith("config.json: ")]
