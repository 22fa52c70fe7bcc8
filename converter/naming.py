"""What the names of checkpoint files tell, and what a conversion is called.

Owns the convention of GGUF names and the wording of default file names. Imports
nothing heavy, because names are looked at before it is known whether there is
anything to convert.
"""

from __future__ import annotations

import re
from pathlib import Path

from converter.recipe import preset

__all__ = ["default_out_path", "model_name", "weight_type"]

# What GGUF names end with: `.Q4_K_M`, `-IQ3_XXS`, `.BF16`, `-fp16`.
_WEIGHT_TYPE = re.compile(r"[.-](i?q[1-8](_[0-9a-z]+)*|(bf|f|fp)16|fp?32)$", re.IGNORECASE)
_SUFFIX = re.compile(r"\.(gguf|ckpt|pth|(safetensors|bin)(\.index\.json)?)$", re.IGNORECASE)
_SHARD = re.compile(r"-[0-9]+-of-[0-9]+$")
# What files are called in every repository; only the directory's name tells models apart.
_NAMELESS = re.compile(r"model|pytorch_model|consolidated(\.0+)?")


def weight_type(file_name: str) -> str:
    """Weight type that a checkpoint's name ends with, in upper case; empty without one."""
    match = _WEIGHT_TYPE.search(_stem(file_name))
    return match[1].upper() if match else ""


def model_name(source: Path) -> str:
    """Name of a checkpoint, file or directory, without its suffix and weight type.

    A file that is called as such files always are, `model.safetensors`, has its
    directory's name.
    """
    stem = _stem(source.name)
    if stem != source.name and _NAMELESS.fullmatch(stem):
        return source.resolve().parent.name or stem
    return _WEIGHT_TYPE.sub("", stem) or source.resolve().name or "model"


def default_out_path(source: Path, type: str) -> Path:
    """Name a conversion to `type` in the current directory: `NAME-TYPE.qlm`.

    NAME is that of `source` without the weight type that GGUF names end with, so
    `Llama-3.2-1B.Q4_K_M.gguf` becomes `Llama-3.2-1B-q4.qlm`.
    """
    return Path(f"{model_name(source)}-{preset(type).name}.qlm")


def _stem(file_name: str) -> str:
    """Name without the suffix of a checkpoint file and the number of its shard."""
    stem = _SUFFIX.sub("", file_name)
    return stem if stem == file_name else _SHARD.sub("", stem)
