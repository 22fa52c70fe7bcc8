"""MindSpore checkpoints of Llama models, as MindFormers makes them: `.ckpt` or safetensors.

Owns the way from a path to a source: which file of a directory, whose config, what the
options say of row order. The `.ckpt` container is `mindspore_file`'s, names and row order are
`mindformers_names`', YAML files `mindformers_config`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy.typing as npt
import yaml

from converter.hf_config import config_from_hugging_face
from converter.hf_tensors import canonical_tensors, check_is_float
from converter.json_files import read_json_object
from converter.mindformers_config import hugging_face_values
from converter.mindformers_names import (
    FUSED_LAYOUTS,
    ROPE_LAYOUTS,
    Layouts,
    hugging_face_names,
    unfused,
)
from converter.sources.base import CheckpointSource, OpenedSource, SourceTensor
from converter.sources.mindspore_file import CheckpointFile, Entry, scan
from converter.sources.options import SourceOptions
from converter.sources.safetensors_file import safetensors_arrays
from converter.sources.shards import joined, weight_files
from converter.sources.stored import StoredArray
from converter.tokenizer_files import tokenizer_from_path
from converter.wording import listed, quoted
from qllama.config import TokenizerConfig
from qllama.errors import ConversionError, UnsupportedModelError

__all__ = ["open_checkpoint"]

_DTYPES: dict[str, npt.DTypeLike] = {
    "Float16": "<f2",
    "BFloat16": ml_dtypes.bfloat16,
    "Float32": "<f4",
}

_MAX_YAML_BYTES = 1 << 20
_YAML = (".yaml", ".yml")
_SUFFIXES = (".ckpt", ".safetensors")
# PREFIX-EPOCH_STEP.ckpt, as MindSpore's callbacks name what they save.
_STEP = re.compile(r"-([0-9]+)_([0-9]+)\.(?:ckpt|safetensors)")
_RANK = re.compile(r"(?:^|_)rank_([0-9]+)(?=[_.-]|$)")


def open_checkpoint(path: Path, options: SourceOptions) -> CheckpointSource:
    """Open a MindSpore checkpoint.

    Parameters
    ----------
    path : Path
        The file, or a directory with one or with shards of safetensors.
    options : SourceOptions
        Makes use of `config`, `tokenizer`, `rope_layout` and `fused_layout`; where the
        first two are None, they are looked for beside the file.

    Raises
    ------
    ConversionError
        When the path is not one whole checkpoint, is damaged, or lacks a tensor or what
        only an option can say.
    UnsupportedModelError
        When the model needs what qllama does not compute.
    """
    layouts = Layouts(
        _choice("--rope-layout", options.rope_layout, ROPE_LAYOUTS) or ROPE_LAYOUTS[0],
        _choice("--fused-layout", options.fused_layout, FUSED_LAYOUTS),
    )
    if path.is_dir() and not any(path.glob("*.safetensors")):
        path = _file(path)
    if path.is_dir() or path.suffix in (".safetensors", ".json"):
        found = weight_files(path, "model.safetensors")
        arrays = joined(path, found, [safetensors_arrays(file) for file in found.files])
        return _assembled(found.files, list(arrays), arrays.__getitem__, layouts, options)
    file = scan(path)
    tags = [e.tag for e in file.entries.values() if e.tensor_type not in ("str", "random_op")]

    def stored(tag: str) -> SourceTensor:
        return _tensor(file, file.entries[tag])

    return _assembled((path,), tags, stored, layouts, options)


def _assembled(
    files: Sequence[Path],
    tags: Sequence[str],
    stored: Callable[[str], SourceTensor],
    layouts: Layouts,
    options: SourceOptions,
) -> CheckpointSource:
    """Put a source together from the parameters `tags`, of which `stored` gives each."""
    where = files[0]
    names = hugging_face_names(where, tags)
    config_path = options.config or _config_beside(where)
    values = _config_values(config_path)
    all_names = {name for parts in names.values() for name in parts}
    config = config_from_hugging_face(config_path, values, all_names)
    tensors = {tag: stored(tag) for tag in names}
    for tensor in tensors.values():
        check_is_float(tensor)
    raw = unfused(where, tensors, names, config, layouts)

    def load_tokenizer(vocab_size: int, trained: Path | None) -> tuple[TokenizerConfig, bytes]:
        return tokenizer_from_path(options.tokenizer or trained or where.parent, vocab_size, values)

    return OpenedSource(
        config=config,
        load_tokenizer=load_tokenizer,
        tensors=canonical_tensors(where, raw, config),
        files=files,
        provenance={
            "format": "mindspore",
            "metadata": {
                "config": config_path.name,
                "rope_layout": layouts.rope,
                "fused_layout": layouts.fused,
            },
        },
    )


def _choice(flag: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value not in (None, *choices):
        raise ConversionError(f"{flag}: expected {' or '.join(choices)}, found {quoted(value)}")
    return value


def _file(directory: Path) -> Path:
    """Find the one checkpoint of a directory; explain what lies there if there are several."""
    found = _checkpoints(directory)
    ranks = [p for p in directory.glob("rank_*") if p.is_dir() and _checkpoints(p)]
    if not found and len(ranks) == 1:
        return _file(ranks[0])
    if len(found) == 1:
        return found[0]
    if not found and not ranks:
        raise ConversionError(f"{directory}: expected a .ckpt file in it, found none")
    numbers = {m[1] for p in [*found, *ranks] if (m := _RANK.search(p.name))}
    if len(numbers) > 1:
        raise ConversionError(
            f"{directory}: the files of {len(numbers)} ranks (devices) of one training: slices of "
            "the model, unless each is whole; merge them with mindspore.transform_checkpoints, or "
            "give the path of one file that is whole"
        )
    steps = {p: tuple(map(int, m.groups())) for p in found if (m := _STEP.search(p.name))}
    if len(steps) == len(found):
        newest = max(steps, key=lambda p: steps[p])
        raise ConversionError(
            f"{directory}: {len(found)} checkpoints of one training (PREFIX-EPOCH_STEP.ckpt); give "
            f"the path of one, the last is {newest.name}"
        )
    raise ConversionError(
        f"{directory}: {len(found)} checkpoints, each a model of its own; give the path of one: "
        f"{listed(sorted(p.name for p in found))}"
    )


def _checkpoints(directory: Path) -> list[Path]:
    files = (p for suffix in _SUFFIXES for p in directory.glob(f"*{suffix}"))
    return [p for p in files if not p.stem.endswith("strategy")]


def _config_beside(path: Path) -> Path:
    config = path.with_name("config.json")
    if config.is_file():
        return config
    found = [p for p in path.parent.iterdir() if p.suffix in _YAML]
    if len(found) == 1:
        return found[0]
    there = f"there are {len(found)} YAML files" if found else "there is no config.json"
    raise ConversionError(
        f"{path}: holds no hyperparameters, and {there} beside it; give --config, a config.json "
        "or a YAML file of MindFormers"
    )


def _config_values(path: Path) -> dict[str, Any]:
    """Read a `config.json`, or translate a YAML file to one."""
    if path.suffix not in _YAML:
        return read_json_object(path)
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_YAML_BYTES + 1)
    except OSError as e:
        raise ConversionError(f"{path}: cannot be read: {e.strerror or e}") from e
    if len(text) > _MAX_YAML_BYTES:
        raise ConversionError(f"{path}: expected a configuration, found more than 1 MiB")
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConversionError(f"{path}: expected YAML: {' '.join(str(e).split())}") from None
    if not isinstance(document, dict):
        raise ConversionError(f"{path}: expected a YAML object, found {quoted(document)}")
    return hugging_face_values(path, document)


def _tensor(file: CheckpointFile, entry: Entry) -> SourceTensor:
    where = f"{file.path}: tensor {quoted(entry.tag)}"
    dtype = _DTYPES.get(entry.tensor_type)
    if dtype is None:
        raise UnsupportedModelError(
            f"{where} is of type {quoted(entry.tensor_type)}, expected {', '.join(_DTYPES)}; "
            "of a quantized checkpoint, convert the one that it was made from"
        )
    return StoredArray(where, file.path, dtype, entry.dims, entry.extents)
