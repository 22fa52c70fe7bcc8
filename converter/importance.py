"""Importance files: how much each column of a model's matrices matters, measured on a text.

Owns the file, which is llama.cpp's importance matrix: a GGUF with a tensor NAME.in_sum2 of
sums of squares of what the matrix NAME was multiplied with, and NAME.counts, of how many
tokens. Files of `llama-imatrix` are read, and it and `llama-quantize` read ours. Knows
nothing of how the sums come about.

Reference: llama.cpp, common/imatrix-loader.cpp and tools/imatrix/README.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter

from converter.sources.base import SourceTensor
from converter.sources.gguf_header import GgufHeader, GgufTensorInfo, read_header
from converter.tensor_map import from_gguf, to_gguf
from converter.wording import listed
from qllama.errors import ConversionError
from qllama.format.partial import PartialFile
from qllama.tensors import EMBEDDING, FINAL_NORM, HEAD

__all__ = [
    "Importance",
    "importance_by_norm",
    "multiplied_matrices",
    "read_importance",
    "write_importance",
]

F32 = npt.NDArray[np.float32]
_NORMS = {
    **dict.fromkeys(("q", "k", "v"), "input_layernorm"),
    **dict.fromkeys(("gate", "up"), "post_attention_layernorm"),
}
_SUMS, _COUNTS = ".in_sum2", ".counts"
_ADVICE = "make one of this model with `qllama calibrate`"


@dataclass(frozen=True)
class Importance:
    """An importance file that fits a model.

    Parameters
    ----------
    columns : mapping
        float32 (k,) of each matrix that the file knows, by its name: the mean squares of
        what its columns were multiplied with.
    provenance : dict
        The file, as a `.qlm` remembers it.
    """

    columns: Mapping[str, F32]
    provenance: dict[str, Any]


def multiplied_matrices(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Name the matrices of a model that vectors are multiplied by, and count their columns.

    Rows of an embedding are looked up, unless it serves as the head too.

    Parameters
    ----------
    shapes : mapping
        Of every tensor, by its name.
    """
    looked_up = EMBEDDING if HEAD in shapes else None
    return {n: s[1] for n, s in shapes.items() if len(s) == 2 and n != looked_up}


def importance_by_norm(name: str, tensors: Mapping[str, SourceTensor]) -> F32 | None:
    """Estimate the importance of a matrix's columns without a text.

    A norm's inputs, before its weights, have a mean square of 1 over the columns. So the
    squares of its weights are what a model tells by itself of the columns' importance to
    the matrices that come right after it.

    Parameters
    ----------
    name : str
        The matrix.
    tensors : mapping
        Of the model, by name.

    Returns
    -------
    float32, (k,), or None
        None where no norm comes right before: after attention, after the MLP's product, and
        where rows are looked up. None, too, where the norm is damaged; it is refused by itself.
    """
    layer, _, part = name.removesuffix("_proj.weight").rpartition(".")
    norm = f"{layer.rpartition('.')[0]}.{_NORMS.get(part)}.weight"
    if name == HEAD or (name == EMBEDDING and HEAD not in tensors):
        norm = FINAL_NORM
    if norm not in tensors:
        return None
    squares = np.square(tensors[norm].read(0, tensors[norm].shape[0]))
    return squares if np.isfinite(squares).all() else None


def read_importance(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Importance:
    """Read the importance file at `path` and hold it against a model.

    What it does not know of the head is not missed: `llama-imatrix` leaves it out.

    Parameters
    ----------
    path : Path
    shapes : mapping
        Of the model's tensors, by name.

    Raises
    ------
    ConversionError
        When it is no importance file, is damaged, or of another model.
    """
    header = read_header(path)
    known, _ = from_gguf(
        name.removesuffix(_SUMS) for name in header.tensors if name.endswith(_SUMS)
    )
    if not known:
        raise ConversionError(
            f"{path}: expected an importance file, a GGUF with tensors NAME{_SUMS}, "
            f"found none of them; {_ADVICE}"
        )
    expected = multiplied_matrices(shapes)
    if extra := [name for name in known if name not in shapes]:
        raise ConversionError(
            f"{path}: of another model: it knows tensor(s) that this one lacks: {listed(extra)}; "
            f"{_ADVICE}"
        )
    missing = [n for n in expected if n not in known and n not in (EMBEDDING, HEAD)]
    if missing:
        raise ConversionError(
            f"{path}: of another model, or not complete: it lacks tensor(s) {listed(missing)}; "
            f"{_ADVICE}"
        )
    columns = {
        name: _mean_squares(path, header, known[name], k)
        for name, k in expected.items()
        if name in known
    }
    return Importance(columns, _provenance(path, header.metadata))


def write_importance(
    path: Path,
    sums: Mapping[str, npt.NDArray[np.float64]],
    n_tokens: int,
    *,
    model: str,
    text: str,
    n_windows: int,
) -> None:
    """Write an importance file; one that is there is replaced once the new one is whole.

    Parameters
    ----------
    path : Path
    sums : float64, (k,)
        Of each matrix, by name: sums over tokens of squares.
    n_tokens : int
        How many tokens.
    model, text : str
        Names of what it was made from.
    n_windows : int
        Pieces that the text was read in.

    Raises
    ------
    ConversionError
        When it cannot be written.
    """
    file = PartialFile(path, 4 * sum(s.size for s in sums.values()))
    try:
        writer = GGUFWriter(file.path, "imatrix")
        writer.add_type("imatrix")
        writer.add_name(model)
        writer.add_array("imatrix.datasets", [text])
        writer.add_uint32("imatrix.chunk_count", n_windows)
        writer.add_uint32("imatrix.chunk_size", n_tokens // n_windows)
        for name, values in sums.items():
            stored = to_gguf(name)
            writer.add_tensor(stored + _SUMS, values.astype(np.float32)[None])
            writer.add_tensor(stored + _COUNTS, np.full((1, 1), n_tokens, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file.commit()
    finally:
        file.discard()


def _mean_squares(path: Path, header: GgufHeader, stored: str, k: int) -> F32:
    """Divide a matrix's sums, float32 (k,), by its count."""
    sums = _values(path, header, stored + _SUMS, k)
    (count,) = _values(path, header, stored + _COUNTS, 1)
    if not count > 0:
        raise ConversionError(
            f"{path}: {stored}{_COUNTS}: expected a number of tokens, found {count}; {_ADVICE}"
        )
    usable = np.isfinite(sums) & (sums >= 0)
    if not usable.all():
        place = int(np.argmin(usable))
        raise ConversionError(
            f"{path}: {stored}{_SUMS}[{place}]: expected a finite number of at least 0, "
            f"found {sums[place]}; {_ADVICE}"
        )
    return np.asarray(sums / count, np.float32)


def _values(path: Path, header: GgufHeader, name: str, n: int) -> F32:
    info: GgufTensorInfo | None = header.tensors.get(name)
    if info is None:
        raise ConversionError(f"{path}: lacks tensor {name}; the file is damaged: {_ADVICE}")
    if info.type != GGMLQuantizationType.F32 or info.n_bytes != 4 * n:
        raise ConversionError(
            f"{path}: tensor {name}: expected {n} numbers of F32, found {info.type.name} "
            f"{info.shape}; it is of another model: {_ADVICE}"
        )
    return np.fromfile(path, "<f4", n, offset=info.offset).astype(np.float32)


def _provenance(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    texts: Sequence[str] = metadata.get("imatrix.datasets", [])
    return {
        "name": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "texts": list(texts),
        "n_windows": metadata.get("imatrix.chunk_count"),
    }
