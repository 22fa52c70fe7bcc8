"""Conversion of a checkpoint into a `.qlm` file, one row slab at a time.

Owns the order of work: open and check the source, check the target, hash the
source, then read, quantize and write slab after slab, so that memory stays near a
slab a thread however big the model is. Knows no checkpoint format, block layout or file layout.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path

from converter.naming import default_out_path
from converter.recipe import preset
from converter.report import ConversionReport, TensorReport
from converter.slabs import carried_type, encoded, prepare, slabs_of
from converter.sources.base import CheckpointSource
from converter.sources.gguf import GgufSource
from qllama.checksum import file_sha256
from qllama.errors import ConversionError
from qllama.format.spec import TensorSpec, tensor_n_bytes
from qllama.format.writer import QlmWriter
from qllama.kernels.cores import default_n_threads
from qllama.progress import OnProgress, silent

__all__ = ["convert", "open_source"]


def convert(
    source_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str] | None = None,
    type: str = "q4",
    *,
    on_progress: OnProgress | None = None,
    n_threads: int | None = None,
    sha256: str | None = None,
    origin: str | None = None,
) -> ConversionReport:
    """Convert a checkpoint into a `.qlm` file.

    Parameters
    ----------
    source_path : path
        A GGUF file.
    out_path : path or None
        Target; replaced only once the new file is complete. None is
        `default_out_path`.
    type : str
        A preset of `converter.recipe`.
    on_progress : callable or None
        An exception that it raises stops the conversion and leaves no file.
    n_threads : int or None
        None is every physical core this process may use.
    sha256 : str or None
        Of the source, where the caller has just computed it; else it is computed.
    origin : str or None
        Where the source came from (a package, a repository), kept as provenance.

    Raises
    ------
    ConversionError
        When the source is damaged, or the target cannot be written.
    UnsupportedModelError
        When the model needs what qllama does not compute.
    TokenizerError
        When the source's tokenizer cannot be rebuilt.
    """
    started = time.perf_counter()
    recipe = preset(type)
    path = Path(source_path)
    out = default_out_path(path, type) if out_path is None else Path(out_path)
    report = on_progress or silent
    source = open_source(path)
    if out.exists() and out.samefile(path):
        raise ConversionError(f"{out}: the target is the source itself; choose another name")
    tokenizer, blob = source.tokenizer
    specs = [TensorSpec(n, recipe.type_of(n, t.shape), t.shape) for n, t in source.tensors.items()]

    def writer_with(sha256: str) -> QlmWriter:
        provenance = {
            "source": path.name,
            "n_bytes": path.stat().st_size,
            "sha256": sha256,
            "origin": origin,
            "qllama": _qllama_version(),
            **source.provenance,
        }
        return QlmWriter(out, source.config, tokenizer, blob, specs, recipe.to_dict(), provenance)

    # Every hash has the same length, so the layout is known before the source's own.
    writer_with(sha256 or "0" * 64).check_target()
    sha256 = sha256 or file_sha256(path, report)
    _prepare_quantizers(source, specs, report)
    with writer_with(sha256) as writer:
        total = sum(t.n_bytes for t in source.tensors.values())
        done = 0
        slabs = (slab for s in specs for slab in slabs_of(source.tensors[s.name], s))
        with closing(encoded(slabs, n_threads or default_n_threads())) as stream:
            for slab, data in stream:
                writer.write(slab.spec.name, data)
                done += slab.n_source_bytes
                report(f"converting {path.name}", done, total)
    return ConversionReport(
        source=path,
        out=out,
        recipe=recipe.name,
        tensors=tuple(_tensor_report(source, spec) for spec in specs),
        n_bytes=writer.file_size,
        seconds=time.perf_counter() - started,
    )


def open_source(path: Path) -> CheckpointSource:
    """Open a checkpoint of whatever format it is; today that is GGUF alone.

    Raises
    ------
    ConversionError, UnsupportedModelError
        As `GgufSource`; also when `path` is a directory.
    """
    if path.is_dir():
        raise ConversionError(f"{path}: expected a .gguf file, found a directory")
    return GgufSource(path)


def _prepare_quantizers(
    source: CheckpointSource, specs: Sequence[TensorSpec], report: OnProgress
) -> None:
    """Compile before the first slab, so that the user sees what takes the seconds."""
    quantized = sorted(
        {
            s.type
            for s in specs
            if len(s.shape) == 2 and carried_type(source.tensors[s.name], s) is None
        }
    )
    for done, type_name in enumerate(quantized):
        report("preparing the quantizers", done, len(quantized))
        prepare(type_name)
    report("preparing the quantizers", len(quantized), len(quantized))


def _qllama_version() -> str:
    try:
        return metadata.version("qllama")
    except metadata.PackageNotFoundError:
        return "unknown"


def _tensor_report(source: CheckpointSource, spec: TensorSpec) -> TensorReport:
    tensor = source.tensors[spec.name]
    return TensorReport(
        name=spec.name,
        shape=spec.shape,
        source_type=tensor.source_type,
        type=spec.type,
        n_bytes=tensor_n_bytes(spec),
        carried=carried_type(tensor, spec) is not None,
    )
