"""Rotary embeddings of `config.json`, in the spellings of transformers 4 and 5."""

from __future__ import annotations

import pytest
from test_hf_config import LLAMA_3, YARN, config

from qllama.config import RopeScaling
from qllama.errors import ConversionError, UnsupportedModelError

LLAMA_3_SCALING = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)


@pytest.mark.parametrize(
    ("changes", "theta", "expected"),
    [
        ({}, 10000.0, None),
        ({"rope_scaling": {}}, 10000.0, None),
        ({"rope_scaling": {"type": "default"}}, 10000.0, None),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 10000.0, RopeScaling("linear", 2.0)),
        ({"rope_scaling": {**LLAMA_3, "rope_type": "llama3"}}, 10000.0, LLAMA_3_SCALING),
        ({"rope_scaling": {**LLAMA_3, "type": "llama3"}}, 10000.0, LLAMA_3_SCALING),
        (
            {"rope_parameters": {**LLAMA_3, "rope_type": "llama3", "rope_theta": 5e5}},
            5e5,
            LLAMA_3_SCALING,
        ),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {**LLAMA_3, "rope_type": "llama3", "type": "llama3"},
                "rope_parameters": {**LLAMA_3, "rope_type": "llama3", "rope_theta": 5e5},
            },
            5e5,
            LLAMA_3_SCALING,
        ),
        (
            {
                "rope_scaling": {**LLAMA_3, "rope_type": "llama3"},
                "original_max_position_embeddings": 32,
            },
            10000.0,
            RopeScaling("llama3", 8.0, 1.0, 4.0, 32),
        ),
        (
            {"rope_scaling": YARN},
            10000.0,
            RopeScaling("yarn", 4.0, original_max_position_embeddings=32),
        ),
        (
            {"rope_scaling": {**YARN, "attention_factor": 0.5, "beta_fast": 16, "beta_slow": 2}},
            10000.0,
            RopeScaling(
                "yarn",
                4.0,
                original_max_position_embeddings=32,
                attention_factor=0.5,
                beta_fast=16,
                beta_slow=2,
            ),
        ),
        (
            # Equal scales cancel (DeepSeek's spelling of "no amplitude").
            {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
            10000.0,
            RopeScaling("yarn", 4.0, original_max_position_embeddings=32, attention_factor=1.0),
        ),
        (
            {"rope_scaling": {**YARN, "factor": None}},
            10000.0,
            RopeScaling("yarn", 4.0, original_max_position_embeddings=32),
        ),
    ],
)
def test_hf_rope_rotary_embedding_is_read_in_both_spellings(changes, theta, expected):
    found = config(*({"rope_theta"} - changes.keys()), **changes)
    assert (found.rope_theta, found.rope_scaling) == (theta, expected)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "rope_scaling.type"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention"),
        ({"rope_parameters": {"mrope_section": [16, 24]}}, "rope_parameters.mrope_section"),
        ({"rope_scaling": {**YARN, "truncate": False}}, "rope_scaling.truncate"),
        (
            {
                "rope_scaling": {"rope_type": "default"},
                "rope_parameters": {**LLAMA_3, "rope_type": "llama3"},
            },
            "rope_parameters",
        ),
        (
            {
                "rope_scaling": {**LLAMA_3, "type": "llama3"},
                "rope_parameters": {**LLAMA_3, "rope_type": "llama3", "rope_theta": 5e5},
            },
            "rope_theta",
        ),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta"),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 4.0}},
            "rope_scaling.type",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor",
        ),
    ],
)
def test_hf_rope_other_rotary_embedding_is_refused_by_name(changes, field):
    with pytest.raises(UnsupportedModelError, match=rf"^config\.json: {field} = "):
        config(**changes)


@pytest.mark.parametrize(
    ("rope", "complaint"),
    [
        ({"type": "linear"}, "rope_scaling.factor is missing"),
        ({"type": "linear", "factor": "2"}, "rope_scaling.factor: expected a finite number"),
        ({**LLAMA_3, "type": "llama3", "low_freq_factor": None}, "low_freq_factor is missing"),
        ({**YARN, "original_max_position_embeddings": 0}, "expected at least 1, found 0"),
        ("yarn", "rope_scaling: expected an object, found 'yarn'"),
    ],
)
def test_hf_rope_malformed_rotary_embedding_is_refused(rope, complaint):
    with pytest.raises(ConversionError, match=complaint):
        config(rope_scaling=rope)
