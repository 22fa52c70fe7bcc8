"""Conversion of a checkpoint into a `.qlm` file, one row slab at a time.

Owns the order of work: open and check the source, check the target, then read, quantize
and write slab after slab while the source's files are hashed beside it, so that memory
stays near a slab a thread however big the model is. Knows no checkpoint format, block
layout or file layout.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from converter.check.weights import SourceWeights
from converter.feedback import CalibrationText, Columns, Moments
from converter.hashing import SourceHashes
from converter.importance import Importance, importance_by_norm, read_importance
from converter.naming import default_out_path
from converter.page_cache import dropped_when_read
from converter.quality import Quality
from converter.recipe import Recipe, Rule, preset
from converter.report import ConversionPlan, ConversionReport, TensorReport
from converter.slabs import carried_type, encoded, prepare, slabs_of
from converter.sources.base import CheckpointSource
from converter.sources.options import SourceOptions
from converter.sources.registry import open_source
from qllama.errors import ConversionError, QllamaError
from qllama.format.spec import MAGIC, TensorSpec, tensor_n_bytes
from qllama.format.writer import QlmWriter
from qllama.kernels.cores import default_n_threads
from qllama.progress import OnProgress, silent
from qllama.tokenizer import load_tokenizer

__all__ = ["convert", "plan"]

_AnyPath = str | os.PathLike[str]
_Adapters = Sequence[tuple[Path, float]]
_AS_FOUND = SourceOptions()


def plan(
    source_path: _AnyPath,
    out_path: _AnyPath | None = None,
    type: str = "q4",
    *,
    options: SourceOptions = _AS_FOUND,
    adapters: _Adapters = (),
    tensor_types: Sequence[Rule] = (),
    importance: _AnyPath | None = None,
) -> ConversionPlan:
    """Say what `convert` would make; whether there is room for it, the caller may ask.

    Parameters
    ----------
    source_path, out_path, type, options, adapters, tensor_types, importance
        As for `convert`.

    Raises
    ------
    ConversionError, UnsupportedModelError, TokenizerError
        As `convert` before it reads weights.
    """
    recipe = preset(type).with_overrides(tensor_types)
    job = _Job.prepare(Path(source_path), out_path, recipe, options, adapters, importance)
    return job.plan(job.writer(job.provenance({})).file_size)


def convert(
    source_path: _AnyPath,
    out_path: _AnyPath | None = None,
    type: str = "q4",
    *,
    options: SourceOptions = _AS_FOUND,
    adapters: _Adapters = (),
    tensor_types: Sequence[Rule] = (),
    importance: _AnyPath | None = None,
    fast: bool = False,
    feedback: CalibrationText | None = None,
    on_progress: OnProgress | None = None,
    n_threads: int | None = None,
    sha256: str | None = None,
    origin: str | None = None,
    check: bool = True,
) -> ConversionReport:
    """Convert a checkpoint into a `.qlm` file.

    Parameters
    ----------
    source_path : path
        A file or directory of any format in `converter.sources.registry.FORMATS`.
    out_path : path or None
        Target; replaced only once the new file is complete. None is
        `default_out_path`.
    type : str
        A preset of `converter.recipe`.
    options : SourceOptions
        What the checkpoint's own files do not say.
    adapters : sequence of (Path, float)
        Directories of LoRA adapters, merged one after another, each with the scale that its
        weights are multiplied by beside its own.
    tensor_types : sequence of Rule
        Weight types of matrices by name, before those of the preset.
    importance : path or None
        A file of `converter.importance`: quantizing spends precision on columns that matter.
    fast : bool
        Whether to round by a formula where quantizing would search.
    feedback : CalibrationText or None
        The model reads it, and codes make up for each other's errors there; takes long.
    on_progress : callable or None
        An exception that it raises stops the conversion and leaves no file.
    n_threads : int or None
        None is every physical core this process may use.
    sha256 : str or None
        Of a source that is one file, where the caller has just computed it.
    origin : str or None
        Where the source came from (a package, a repository), kept as provenance.
    check : bool
        Whether the new file must pass `self_check` before it gets its name.

    Raises
    ------
    ConversionError
        When the source is damaged, the target cannot be written, or the file that was made
        is not what the source says.
    UnsupportedModelError
        When the model needs what qllama does not compute.
    TokenizerError
        When the source's tokenizer cannot be rebuilt.
    """
    started = time.perf_counter()
    report = on_progress or silent
    n_threads = n_threads or default_n_threads()
    recipe = preset(type).with_overrides(tensor_types)
    job = _Job.prepare(
        Path(source_path), out_path, recipe, options, adapters, importance, fast=fast
    )
    source, name = job.source, job.path.name
    known = {source.files[0]: sha256} if sha256 and len(source.files) == 1 else {}
    # Every hash has the same length, so the layout is known before the source's own are.
    if feedback is not None:
        job = replace(job, feedback=feedback.name)
    writer = job.writer(job.provenance(known, origin))
    writer.check_target()
    _prepare_quantizers(job, report)
    total = sum(t.n_bytes for t in source.tensors.values())
    moments = _moments(source, feedback, report)
    slabs = (
        slab
        for s in job.specs
        for slab in slabs_of(source.tensors[s.name], s, job.columns_of(s, moments), fast=fast)
    )
    reads = {file: 1 if file in known else 2 for file in source.files}
    with writer, dropped_when_read(reads), SourceHashes(source.files, known) as hashes:
        done = 0
        errors: list[npt.NDArray[np.float64]] = []
        quality: dict[str, Quality] = {}
        with closing(encoded(slabs, n_threads)) as stream:
            for slab, made in stream:
                writer.write(slab.spec.name, made.data)
                if made.error is not None:
                    errors.append(made.error)
                if slab.is_last and len(slab.spec.shape) == 2:
                    quality[slab.spec.name] = _quality(errors, slab.spec)
                    errors = []
                done += slab.n_source_bytes
                hashes.follow(done / total)
                report(f"converting {name}", done, total)
        for tensor_name, figures in quality.items():
            writer.set_quality(tensor_name, figures.to_dict())
        hashed = hashes.finish(lambda done, total: report(f"hashing {name}", done, total))
        writer.set_provenance(job.provenance(hashed, origin))
        notices = _checked(job, writer, quality, report) if check else ()
    seconds = time.perf_counter() - started
    return job.plan(writer.file_size).carried_out(quality, notices, seconds)


@dataclass(frozen=True)
class _Job:
    """A source that is open, and what is to be made of it."""

    path: Path
    out: Path
    source: CheckpointSource
    recipe: Recipe
    specs: Sequence[TensorSpec]
    importance: Importance | None
    fast: bool
    feedback: str | None = None

    @classmethod
    def prepare(
        cls,
        path: Path,
        out_path: _AnyPath | None,
        recipe: Recipe,
        options: SourceOptions,
        adapters: _Adapters,
        importance: _AnyPath | None,
        *,
        fast: bool = False,
    ) -> _Job:
        out = default_out_path(path, recipe.name) if out_path is None else Path(out_path)
        source = open_source(path, options)
        if out.exists() and any(out.samefile(file) for file in source.files):
            raise ConversionError(f"{out}: the target is the source itself; choose another name")
        if out.suffix != ".qlm" and out.is_file() and not _is_qlm(out):
            raise ConversionError(f"{out}: exists, and is no .qlm file; choose another name")
        for directory, scale in adapters:
            from converter.lora import with_adapter

            source = with_adapter(source, directory, scale)
        shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
        specs = [
            TensorSpec(name, type, shapes[name]) for name, type in recipe.types(shapes).items()
        ]
        weighing = None if importance is None else read_importance(Path(importance), shapes)
        return cls(path, out, source, recipe, specs, weighing, fast)

    def importance_of(self, name: str) -> npt.NDArray[np.float32] | None:
        """Importance of the columns of the matrix `name`, as far as it is known.

        From a file, or else from the weights of the norm before it.
        """
        known = None if self.importance is None else self.importance.columns.get(name)
        return importance_by_norm(name, self.source.tensors) if known is None else known

    def columns_of(self, spec: TensorSpec, moments: Moments | None) -> Columns | None:
        """What is known of the columns of a tensor, where that is of use."""
        if len(spec.shape) == 1 or carried_type(self.source.tensors[spec.name], spec) is not None:
            return None
        read = None if moments is None else moments.of(spec.name)
        if read is not None and self.importance is None:
            return read
        importance = self.importance_of(spec.name)
        if importance is None:
            return read
        return Columns(importance, None if read is None else read.factor)

    def writer(self, provenance: dict[str, Any]) -> QlmWriter:
        tokenizer, blob = self.source.tokenizer
        config, recipe = self.source.config, self.recipe.to_dict()
        return QlmWriter(self.out, config, tokenizer, blob, self.specs, recipe, provenance)

    def provenance(self, hashes: Mapping[Path, str], origin: str | None = None) -> dict[str, Any]:
        """What the file tells of its source; zeros where a hash is not known yet."""
        files = [
            {"name": f.name, "n_bytes": f.stat().st_size, "sha256": hashes.get(f, "0" * 64)}
            for f in self.source.files
        ]
        one = files[0] if len(files) == 1 else {}
        return {
            "source": _given_name(self.path),
            "n_bytes": sum(f.stat().st_size for f in self.source.files),
            "sha256": one.get("sha256"),
            "files": files,
            "origin": origin,
            "qllama": _qllama_version(),
            **({} if self.feedback is None else {"feedback": {"text": self.feedback}}),
            **({} if self.importance is None else {"importance": self.importance.provenance}),
            **({"fast": True} if self.fast else {}),
            **self.source.provenance,
        }

    def plan(self, n_bytes: int) -> ConversionPlan:
        return ConversionPlan(
            source=self.path,
            out=self.out,
            recipe=self.recipe.name,
            tensors=tuple(self._tensor_report(spec) for spec in self.specs),
            n_bytes=n_bytes,
        )

    def _tensor_report(self, spec: TensorSpec) -> TensorReport:
        tensor = self.source.tensors[spec.name]
        return TensorReport(
            name=spec.name,
            shape=spec.shape,
            source=tensor.where,
            source_type=tensor.source_type,
            source_n_bytes=tensor.n_bytes,
            type=spec.type,
            n_bytes=tensor_n_bytes(spec),
            carried=carried_type(tensor, spec) is not None,
        )


def _checked(
    job: _Job, writer: QlmWriter, quality: Mapping[str, Quality], report: OnProgress
) -> tuple[str, ...]:
    """Finish the file and check it, under its name for the time being."""
    from converter.check.self_check import self_check

    try:
        return self_check(writer.finish(), job.source, quality, report)
    except QllamaError as error:
        raise ConversionError(f"{job.path}: the conversion is not right: {error}") from error


def _quality(errors: Sequence[npt.NDArray[np.float64]], spec: TensorSpec) -> Quality:
    """Figures of a matrix from those of its slabs, of which carried ones have none."""
    return Quality.of(errors, math.prod(spec.shape)) if errors else Quality.lossless()


def _moments(
    source: CheckpointSource, text: CalibrationText | None, report: OnProgress
) -> Moments | None:
    """Tokenize the text that error feedback is to be drawn from; it is read as needed."""
    if text is None:
        return None
    windows = text.windows(load_tokenizer(*source.tokenizer))
    weights = SourceWeights(source.config, source.tensors)
    return Moments(weights, windows, lambda done, total: report("reading the text", done, total))


def _prepare_quantizers(job: _Job, report: OnProgress) -> None:
    """Compile before the first slab, so that the user sees what takes the seconds."""
    quantized = sorted(
        {
            (s.type, job.feedback is not None or job.importance_of(s.name) is not None)
            for s in job.specs
            if len(s.shape) == 2 and carried_type(job.source.tensors[s.name], s) is None
        }
    )
    for done, (type_name, weighted) in enumerate(quantized):
        report("preparing the quantizers", done, len(quantized))
        prepare(type_name, weighted)
    report("preparing the quantizers", len(quantized), len(quantized))


def _is_qlm(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _given_name(path: Path) -> str:
    """Name of a path, also of `.`."""
    return path.name or path.resolve().name


def _qllama_version() -> str:
    try:
        return metadata.version("qllama")
    except metadata.PackageNotFoundError:
        return "unknown"
