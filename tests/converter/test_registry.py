"""Which format a path is: by its names and first bytes, or as the user says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_gguf import write_gguf
from tiny_hf import write_repository

from converter.sources import registry
from converter.sources.options import SourceOptions
from converter.sources.registry import FORMATS, Format, files_of, open_source
from qllama.errors import ConversionError


def detected(path: Path) -> list[str]:
    """Names of all formats that a path looks like; the first is taken."""
    return [name for name, format in FORMATS.items() if format.matches(path)]


def touch(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).write_bytes(b"")
    return directory


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors"], "huggingface"),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], "huggingface"),
        (["model.safetensors", "consolidated.safetensors", "params.json"], "huggingface"),
        (["model.safetensors", "pytorch_model.bin", "consolidated.00.pth"], "huggingface"),
        (["pytorch_model.bin", "config.json"], "pytorch"),
        (["pytorch_model-00001-of-00002.bin", "consolidated.00.pth"], "pytorch"),
        (["consolidated.00.pth", "params.json"], "meta"),
        (["consolidated.safetensors", "params.json"], "meta"),
        (["llama_7b.ckpt"], "mindspore"),
    ],
)
def test_registry_directory_is_known_by_the_files_in_it(tmp_path, names, expected):
    assert detected(touch(tmp_path, *names))[0] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.gguf", "gguf"),
        ("MODEL.GGUF", "gguf"),
        ("model.safetensors", "huggingface"),
        ("model.safetensors.index.json", "huggingface"),
        ("pytorch_model.bin", "pytorch"),
        ("pytorch_model.bin.index.json", "pytorch"),
        ("consolidated.00.pth", "meta"),
        ("llama_7b.ckpt", "mindspore"),
    ],
)
def test_registry_file_is_known_by_its_name(tmp_path, name, expected):
    assert detected(touch(tmp_path, name) / name) == [expected]


def test_registry_gguf_of_any_name_is_known_by_its_first_bytes(tmp_path):
    source = open_source(write_gguf(tmp_path / "sha256-0123"))
    assert source.provenance["format"] == "gguf"


def test_registry_hugging_face_directory_is_opened(tmp_path):
    source = open_source(write_repository(tmp_path / "tiny"))
    assert source.provenance["format"] == "huggingface"


def test_registry_format_that_the_user_names_is_not_questioned(tmp_path):
    blob = write_gguf(tmp_path / "m.safetensors")
    assert detected(blob)[0] == "gguf"
    with pytest.raises(ConversionError, match="malformed safetensors file"):
        open_source(blob, SourceOptions(format="huggingface"))


def test_registry_unknown_format_lists_those_there_are(tmp_path):
    with pytest.raises(ConversionError, match=r"--from: expected one of gguf, .* found 'onnx'"):
        open_source(tmp_path, SourceOptions(format="onnx"))


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ("config", "--config"),
        ("rope_layout", "--rope-layout"),
        ("fused_layout", "--fused-layout"),
    ],
)
def test_registry_option_that_a_format_has_no_use_for_is_refused(tmp_path, option, flag):
    source = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(ConversionError, match=rf"{flag} is of no use for the format gguf"):
        open_source(source, SourceOptions(**{option: "x"}))


def test_registry_options_reach_the_module_that_opens(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("converter.sources.gguf.open_checkpoint", lambda *got: seen.append(got))
    monkeypatch.setitem(
        FORMATS, "mine", Format("mine", "gguf", lambda path: False, ("config", "rope_layout"))
    )
    options = SourceOptions(format="mine", config=Path("c"), rope_layout="half")
    open_source(tmp_path, options)
    assert seen == [(tmp_path, options)]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ([], "an empty directory"),
        (["a.gguf", "b.gguf"], r"a directory of GGUF files; give .* such as a\.gguf"),
        (["adapter_config.json", "adapter_model.safetensors"], "a LoRA adapter.*--lora"),
        (["config.json", "model.safetensors.index.json"], "but none of the shards; fetch them"),
        (["config.json", "readme.md"], r"it holds config\.json, readme\.md; qllama converts"),
        ([f"{i}.txt" for i in range(9)], r"5\.txt and 3 more; "),
    ],
)
def test_registry_directory_without_a_checkpoint_is_described(tmp_path, names, complaint):
    with pytest.raises(ConversionError, match=complaint) as caught:
        open_source(touch(tmp_path, *names))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\x89QLM\r\n\x1a\n....", r"a \.qlm file already"),
        (b"ggjt\x03", r"begins with b'ggjt\\x03'"),
        (b"", "begins with b''"),
    ],
)
def test_registry_file_that_is_no_checkpoint_is_described(tmp_path, content, complaint):
    path = tmp_path / "blob"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=complaint):
        open_source(path)


def test_registry_file_of_an_adapter_is_described(tmp_path):
    path = touch(tmp_path, "adapter_model.safetensors") / "adapter_model.safetensors"
    with pytest.raises(ConversionError, match=r"a file of a LoRA adapter.*--lora"):
        open_source(path)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("a/m.gguf", {"a/m.gguf"}),
        ("a/m-00001-of-00002.gguf", {"a/m-00001-of-00002.gguf", "a/m.gguf", "a/x.json"}),
        ("meta", {"meta/consolidated.00.pth", "meta/params.json", "tokenizer.model"}),
        ("ms", {"ms/rank_0/x.ckpt", "ms/rank_0/x.yaml", "ms/tokenizer.json"}),
        ("ms/rank_0/x.ckpt", {"ms/rank_0/x.ckpt", "ms/rank_0/x.yaml"}),
    ],
)
def test_registry_files_of_a_checkpoint_are_all_that_it_may_depend_on(tmp_path, given, names):
    for directory in ("a/below", "meta", "ms/rank_0"):
        (tmp_path / directory).mkdir(parents=True)
    touch(tmp_path / "a", "m.gguf", "m-00001-of-00002.gguf", "x.json", "below/y.json")
    touch(tmp_path, "meta/consolidated.00.pth", "meta/params.json", "meta/notes.txt")
    touch(tmp_path, "tokenizer.model", "other.json")
    touch(tmp_path / "ms", "rank_0/x.ckpt", "rank_0/x.yaml", "tokenizer.json")
    found = {str(path.relative_to(tmp_path)) for path in files_of(tmp_path / given)}
    assert found == names


def test_registry_missing_path_is_named(tmp_path):
    with pytest.raises(ConversionError, match=r"absent: cannot be read: No such file"):
        open_source(tmp_path / "absent")


def test_registry_every_option_has_its_flag():
    fields = {field for format in FORMATS.values() for field in format.takes}
    assert fields == set(registry._FLAGS)
