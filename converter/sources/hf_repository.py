"""A repository in Hugging Face's layout, whatever kind of file holds its weights.

Owns what goes around the weights: `config.json`, the tokenizer's files, provenance.
Knows no file of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converter.hf_config import config_from_hugging_face
from converter.hf_tensors import canonical_tensors
from converter.json_files import read_json_object
from converter.sources.base import OpenedSource, SourceTensor
from converter.sources.bitsandbytes import joined_int8
from converter.sources.options import SourceOptions
from converter.tokenizer_files import tokenizer_from_path
from qllama.config import TokenizerConfig
from qllama.errors import ConversionError

__all__ = ["open_repository"]

# What config.json says of where a model comes from.
_ORIGIN_KEYS = ("model_type", "architectures", "_name_or_path", "dtype", "torch_dtype")


def open_repository(
    format: str,
    directory: Path,
    files: Sequence[Path],
    raw: Mapping[str, SourceTensor],
    options: SourceOptions,
) -> OpenedSource:
    """Put a source together from a directory and the tensors of its weights.

    Parameters
    ----------
    format : str
        Kept as provenance.
    directory : Path
        Where the other files are, unless `options` names them.
    files : sequence of Path
        The files of the weights.
    raw : mapping
        Their tensors, by Hugging Face's names; matrices may be LLM.int8 of bitsandbytes.
    options : SourceOptions
        Its `config` and `tokenizer` come before the directory's.

    Raises
    ------
    ConversionError
        When a file is missing or damaged, or the tensors are not the config's.
    UnsupportedModelError
        When the model needs what qllama does not compute.
    """
    where = options.config or directory / "config.json"
    if options.config is None and not where.exists():
        raise ConversionError(
            f"{directory}: no config.json beside the weights; fetch it, or give --config FILE"
        )
    declared = read_json_object(where)
    raw = joined_int8(raw)
    config = config_from_hugging_face(where, declared, raw)

    def load_tokenizer(vocab_size: int, trained: Path | None) -> tuple[TokenizerConfig, bytes]:
        return tokenizer_from_path(options.tokenizer or trained or directory, vocab_size, declared)

    return OpenedSource(
        config=config,
        load_tokenizer=load_tokenizer,
        tensors=canonical_tensors(directory, raw, config),
        files=tuple(files),
        provenance={"format": format, "metadata": _origin(declared)},
    )


def _origin(declared: Mapping[str, Any]) -> dict[str, Any]:
    return {key: declared[key] for key in _ORIGIN_KEYS if declared.get(key)}
