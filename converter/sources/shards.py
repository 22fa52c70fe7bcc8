"""Which files of a directory hold a Hugging Face checkpoint's weights.

Owns the names of single files, shards and their index, and the joining of the shards'
tensors. `model.safetensors` and `pytorch_model.bin` differ in nothing else here; opens
no file of weights but to see that it is one.

Reference: the index of huggingface_hub's `split_torch_state_dict_into_shards`, and
MindSpore's of `unified_safetensors`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from converter.json_files import read_json_object
from converter.wording import quoted, shown
from qllama.errors import ConversionError

__all__ = ["WeightFiles", "check_is_weights", "joined", "weight_files"]

_INDEX = ".index.json"
_MINDSPORE_INDEX = "param_name_map.json"
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.[a-z]+)")
_LFS_POINTER = b"version https://git-lfs"
# Weights in other names, or none of a model.
_OTHERS = ("consolidated", "adapter_", "hyper_param")

_Tensor = TypeVar("_Tensor")


@dataclass(frozen=True)
class WeightFiles:
    """The files of one checkpoint.

    Parameters
    ----------
    files : tuple of Path
        In the order of their names.
    index : Path or None
        The file that maps tensors to shards.
    weight_map : mapping
        Tensor to the name of its file, as the index has it.
    """

    files: tuple[Path, ...]
    index: Path | None
    weight_map: Mapping[str, str]

    @property
    def directory(self) -> Path:
        """Where the checkpoint's other files are."""
        return self.files[0].parent


def weight_files(path: Path, single: str) -> WeightFiles:
    """Find the files of a checkpoint.

    Parameters
    ----------
    path : Path
        A directory, an index, or a file of weights.
    single : str
        What the file is called where there is only one: `model.safetensors`.

    Raises
    ------
    ConversionError
        When a shard is missing, or it is not clear which files belong together.
    """
    found = _found(path, single)
    for file in found.files:
        check_is_weights(file)
    return found


def joined(
    where: Path, files: WeightFiles, tensors: Sequence[Mapping[str, _Tensor]]
) -> dict[str, _Tensor]:
    """Join the tensors of the shards, which must be those that the index names.

    Parameters
    ----------
    where : Path
        The checkpoint, for messages.
    files : WeightFiles
        Its files.
    tensors : sequence of mapping
        What each of the files holds, by name.

    Raises
    ------
    ConversionError
        When a tensor is in two shards, or not in the one that the index names.
    """
    result: dict[str, _Tensor] = {}
    place: dict[str, str] = {}
    for file, held in zip(files.files, tensors, strict=True):
        for name, tensor in held.items():
            if name in result:
                raise ConversionError(
                    f"{where}: tensor {shown(name)} is in {place[name]} and in {file.name}"
                )
            result[name] = tensor
            place[name] = file.name
    for name, file_name in files.weight_map.items():
        if place.get(name) != file_name:
            raise ConversionError(
                f"{files.index}: expected tensor {shown(name)} in {file_name}, found it in "
                f"{place.get(name, 'no file')}; the files are not of one download"
            )
    return result


def _found(path: Path, single: str) -> WeightFiles:
    if path.name.endswith(_INDEX) or path.name == _MINDSPORE_INDEX:
        return _of_index(path)
    if path.is_file():
        return _of_file(path)
    if (path / single).exists():
        return WeightFiles((path / single,), None, {})
    index = path / f"{single}{_INDEX}"
    for candidate in (index, path / _MINDSPORE_INDEX):
        if candidate.exists():
            return _of_index(candidate)
    suffix = Path(single).suffix
    names = sorted(
        file.name for file in path.glob(f"*{suffix}") if not file.name.startswith(_OTHERS)
    )
    if not names:
        raise ConversionError(f"{path}: expected {single} or {index.name}, found neither")
    if len(names) > 1 or _SHARD.fullmatch(names[0]):
        _check_is_one_set(path, names, index)
    return WeightFiles(tuple(path / name for name in names), None, {})


def _of_file(path: Path) -> WeightFiles:
    """Return the checkpoint that a file is, or is a shard of."""
    shard = _SHARD.fullmatch(path.name)
    names = [] if shard is None else _set_of(shard)
    if shard is None or path.name not in names:
        return WeightFiles((path,), None, {})
    for index in (f"{shard['stem']}{shard['suffix']}{_INDEX}", _MINDSPORE_INDEX):
        if path.with_name(index).exists():
            found = _of_index(path.with_name(index))
            if path in found.files:
                return found
    files = tuple(path.with_name(name) for name in names)
    _check_all_there(path, files)
    return WeightFiles(files, None, {})


def _set_of(shard: re.Match[str]) -> list[str]:
    """Names of all shards of the set that one of them names."""
    count = int(shard["count"])
    return [
        f"{shard['stem']}-{number:05}-of-{count:05}{shard['suffix']}"
        for number in range(1, count + 1)
    ]


def _of_index(index: Path) -> WeightFiles:
    values = read_json_object(index)
    # MindSpore's is the map itself, or holds it as the others do.
    bare = values if index.name == _MINDSPORE_INDEX else None
    weight_map = values.get("weight_map", bare)
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(
            f"{index}: weight_map: expected tensors and their files, found {quoted(weight_map)}"
        )
    for name in weight_map.values():
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise ConversionError(
                f"{index}: weight_map: expected names of files beside it, found {quoted(name)}"
            )
    files = tuple(index.with_name(name) for name in sorted(set(weight_map.values())))
    _check_all_there(index, files)
    return WeightFiles(files, index, weight_map)


def _check_is_one_set(directory: Path, names: Sequence[str], index: Path) -> None:
    """Accept shards without an index only as the shards 1 to N of one set."""
    first = _SHARD.fullmatch(names[0])
    if first is None:
        raise ConversionError(
            f"{directory}: expected {index.name} beside several files of weights "
            f"({', '.join(shown(name) for name in names[:4])}, ...); give the path of one file, "
            "or fetch the index"
        )
    expected = _set_of(first)
    extra = sorted(set(names) - set(expected))
    if extra:
        raise ConversionError(
            f"{directory}: expected the {len(expected)} shards of one checkpoint, found "
            f"{shown(extra[0])} too; give the path of one file, or fetch the index"
        )
    _check_all_there(directory, [directory / name for name in expected])


def _check_all_there(where: Path, files: Sequence[Path]) -> None:
    # Path.exists raises for a name that is too long.
    missing = [file.name for file in files if not os.path.exists(file)]  # noqa: PTH110
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConversionError(
            f"{where}: missing shard {shown(missing[0])}{more} of {len(files)}; fetch it too"
        )


def check_is_weights(file: Path) -> None:
    """Refuse what stands for a file of weights that was not fetched.

    Parameters
    ----------
    file : Path
        The file.

    Raises
    ------
    ConversionError
        When it is a Git LFS pointer, or cannot be read.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(len(_LFS_POINTER))
    except OSError as e:
        raise ConversionError(f"{file}: cannot be read: {e.strerror or e}") from e
    if start == _LFS_POINTER:
        raise ConversionError(
            f"{file}: a Git LFS pointer in place of the weights; run `git lfs pull` there"
        )
