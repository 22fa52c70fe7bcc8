"""Which files of a repository make one model."""

from __future__ import annotations

import pytest

from qllama.errors import ModelNotFoundError
from qllama.hub.choice import Choice, choose, matching

FILES = [
    "README.md",
    "m.Q2_K.gguf",
    "m.Q4_0.gguf",
    "m.Q4_K_M.gguf",
    "m.Q8_0.gguf",
    "m.f16.gguf",
    "mmproj-m.Q8_0.gguf",
    "big/m.F32-00001-of-00002.gguf",
    "big/m.F32-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("want", "expected"),
    [
        (None, "m.Q8_0.gguf"),
        ("q8", "m.Q8_0.gguf"),
        ("Q4_K_M", "m.Q4_K_M.gguf"),
        ("q4_k", "m.Q4_K_M.gguf"),
        ("q4", "m.Q4_K_M.gguf"),
        ("f16", "m.f16.gguf"),
        ("m.Q2_K.gguf", "m.Q2_K.gguf"),
        ("M.q2_k", "m.Q2_K.gguf"),
    ],
)
def test_choose_takes_what_is_wanted_with_the_least_loss(want, expected):
    assert choose("org/name", want, FILES) == Choice(expected, (expected,))


def test_choose_of_unknown_types_is_the_first_by_name():
    assert choose("org/name", None, ["b.gguf", "a.gguf"]).main == "a.gguf"


@pytest.mark.parametrize(
    ("want", "names", "expected"),
    [
        ("q6", FILES, r"no GGUF file 'q6'; there is big/m.*, m\.Q2_K\.gguf, m\.Q4_0\.gguf"),
        ("q", FILES, "no GGUF file 'q'"),
        (
            "q4",
            ["config.json", "model.safetensors"],
            r"no GGUF file 'q4'; there is config\.json, model",
        ),
        (None, ["config.json", "model.onnx"], r"found only config\.json, model\.onnx; look for"),
        (None, [], "found only nothing"),
        (None, [f"{i}.bin" for i in range(10)], "and 2 more"),
    ],
)
def test_choose_that_is_not_there_lists_what_is(want, names, expected):
    with pytest.raises(ModelNotFoundError, match=expected) as caught:
        choose("org/name", want, names)
    assert str(caught.value).startswith("org/name: ")


SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json")
SHARDS = tuple(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("model.safetensors",), Choice("model.safetensors", (*SMALL, "model.safetensors"))),
        (
            (*SHARDS, "model.safetensors.index.json", "consolidated.safetensors"),
            Choice(
                "model.safetensors.index.json", (*SMALL, "model.safetensors.index.json", *SHARDS)
            ),
        ),
        (("pytorch_model.bin",), Choice("pytorch_model.bin", (*SMALL, "pytorch_model.bin"))),
        (
            ("pytorch_model.bin", "model.safetensors"),
            Choice("model.safetensors", (*SMALL, "model.safetensors")),
        ),
    ],
)
def test_choose_without_gguf_takes_one_kind_of_weights_and_what_belongs_to_it(names, expected):
    assert choose("org/name", None, [*names, *reversed(SMALL), "README.md"]) == expected


def test_choose_prefers_a_gguf_file_which_is_smaller():
    assert choose("org/name", None, ["model.safetensors", "m.Q8_0.gguf"]).files == ("m.Q8_0.gguf",)


@pytest.mark.parametrize(("want", "names"), [("f32", FILES), (None, FILES[-2:])])
def test_choose_split_file_with_all_its_parts(want, names):
    assert choose("org/name", want, [*reversed(names)]) == Choice(FILES[-2], tuple(FILES[-2:]))


@pytest.mark.parametrize("want", ["m.F32-00001-of-00002.gguf", "m.f32-00002-of-00002.gguf"])
def test_choose_any_part_of_a_split_file_means_all_of_it(want):
    names = [name.removeprefix("big/") for name in FILES]
    assert choose("org/name", want, names).files == tuple(names[-2:])


@pytest.mark.parametrize(
    ("want", "expected"),
    [
        ("pytorch_model.bin", (*SMALL, "pytorch_model.bin")),
        ("model.safetensors.index.json", (*SMALL, "model.safetensors.index.json", *SHARDS)),
        (SHARDS[1], (*SMALL, "model.safetensors.index.json", *SHARDS)),
    ],
)
def test_choose_a_file_of_weights_takes_what_belongs_to_it(want, expected):
    names = [*SMALL, *SHARDS, "model.safetensors.index.json", "pytorch_model.bin", "m.Q8_0.gguf"]
    assert choose("org/name", want, names).files == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*Q8_0.gguf", "m.Q8_0.gguf"),
        ("m.f16*", "m.f16.gguf"),
        ("*F32*", FILES[-2]),
        ("*-00002-of-*.gguf", FILES[-2]),
        ("*.safetensors", "model.safetensors.index.json"),
    ],
)
def test_matching_pattern_means_one_model(pattern, expected):
    names = [*FILES, *SHARDS, "model.safetensors.index.json"]
    assert matching("org/name", pattern, names) == expected


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*Q4*", r"several: m\.Q4_0\.gguf, m\.Q4_K_M\.gguf; name a file"),
        ("*Q5*", "none of README"),
        ("README*", "none of README"),
    ],
)
def test_matching_no_model_or_several_lists_them(pattern, found):
    with pytest.raises(ModelNotFoundError, match=f"org/name: expected .* one model, found {found}"):
        matching("org/name", pattern, FILES)
