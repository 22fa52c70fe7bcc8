"""The checkpoint formats: which one a path is, and what opens it.

Owns the table and the detection, by names and first bytes. The modules that read a
format are imported when a path of that format is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from converter.sources.base import CheckpointSource
from converter.sources.options import SourceOptions
from converter.wording import shown
from qllama.errors import ConversionError
from qllama.format.spec import MAGIC

__all__ = ["FORMATS", "Format", "detect", "files_of", "open_source"]

_GGUF_MAGIC = b"GGUF"
_ADAPTER = "adapter_"
_NO_MODEL = "which is no model; give its base model, and this"
_LISTED = 6
_READ = (
    *(".gguf", ".safetensors", ".bin", ".pth", ".ckpt"),
    *(".json", ".yaml", ".yml", ".model", ".jinja"),
)
_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "generation_config", "chat_temp")


@dataclass(frozen=True)
class Format:
    """One checkpoint format.

    Parameters
    ----------
    description : str
        One line for lists of formats.
    module : str
        In `converter.sources`; its `open_checkpoint(path, options)` opens a checkpoint.
    matches : callable
        Whether a path, to a file or directory that exists, looks like this format.
    takes : tuple of str
        Fields of `SourceOptions` that it makes use of, beside `format`.
    """

    description: str
    module: str
    matches: Callable[[Path], bool]
    takes: tuple[str, ...] = ()

    def open(self, path: Path, options: SourceOptions) -> CheckpointSource:
        """Open a checkpoint; imports the module.

        Parameters
        ----------
        path : Path
            File or directory.
        options : SourceOptions
            What the user says of it.

        Raises
        ------
        ConversionError, UnsupportedModelError
            When it is damaged, incomplete or not a model that qllama runs.
        """
        module = import_module(f"converter.sources.{self.module}")
        source: CheckpointSource = module.open_checkpoint(path, options)
        return source


def _is_gguf(path: Path) -> bool:
    return path.is_file() and (path.suffix.lower() == ".gguf" or _begins_with(path, _GGUF_MAGIC))


def _is_hugging_face(path: Path) -> bool:
    if path.is_dir():
        # Mistral's repositories hold the same weights a second time, in Meta's names.
        others = ("consolidated", _ADAPTER)
        return any(not name.startswith(others) for name in _names(path, "*.safetensors"))
    # MindFormers' own names: the module that opens it looks for them.
    known = (".safetensors", ".safetensors.index.json", "param_name_map.json")
    return path.name.endswith(known) and not path.name.startswith(_ADAPTER)


def _is_pytorch(path: Path) -> bool:
    if path.is_dir():
        return bool(_names(path, "pytorch_model*.bin"))
    return path.name.endswith((".bin", ".bin.index.json"))


def _is_meta(path: Path) -> bool:
    if path.is_dir():
        return bool(_names(path, "consolidated*"))
    return path.name.startswith("consolidated") or path.suffix == ".pth"


def _is_mindspore(path: Path) -> bool:
    if path.is_dir():
        ranks = ("rank_*/*.ckpt", "rank_*/*.safetensors")
        return any(_names(path, pattern) for pattern in ("*.ckpt", *ranks))
    return path.suffix == ".ckpt"


# A directory is the first that it matches: published repositories repeat the same weights in
# several formats, and these come in the order in which they are the least trouble.
FORMATS: dict[str, Format] = {
    "gguf": Format("GGUF files (llama.cpp)", "gguf", _is_gguf, ("tokenizer",)),
    "huggingface": Format(
        "Hugging Face repositories with safetensors files",
        "huggingface",
        _is_hugging_face,
        ("config", "tokenizer"),
    ),
    "pytorch": Format(
        "Hugging Face repositories with pytorch_model*.bin files",
        "pytorch",
        _is_pytorch,
        ("config", "tokenizer"),
    ),
    "meta": Format(
        "Meta's releases: consolidated.*.pth with params.json",
        "meta",
        _is_meta,
        ("config", "tokenizer"),
    ),
    "mindspore": Format(
        "MindSpore .ckpt or safetensors files with MindFormers' names",
        "mindspore",
        _is_mindspore,
        ("config", "tokenizer", "rope_layout", "fused_layout"),
    ),
}

_FLAGS = {
    "config": "--config",
    "tokenizer": "--tokenizer",
    "rope_layout": "--rope-layout",
    "fused_layout": "--fused-layout",
}


def detect(path: Path) -> str | None:
    """Return the name of the format that a file or directory looks like; None for none.

    Raises
    ------
    ConversionError
        When `path` is not there or cannot be read.
    """
    try:
        path.stat()
        return next((name for name, format in FORMATS.items() if format.matches(path)), None)
    except OSError as e:
        raise ConversionError(f"{path}: cannot be read: {e.strerror or e}") from e


def open_source(path: Path, options: SourceOptions | None = None) -> CheckpointSource:
    """Open a checkpoint of whatever format it is.

    Parameters
    ----------
    path : Path
        File or directory.
    options : SourceOptions or None
        Its `format`, where given, is not questioned.

    Raises
    ------
    ConversionError
        When no format fits (says what the path is), an option is of no use for the
        format, or the checkpoint is damaged or incomplete.
    UnsupportedModelError
        When the model needs what qllama does not compute.
    """
    options = options or SourceOptions()
    detected = detect(path)
    name = detected if options.format is None else options.format
    if name is None:
        if (meant := _meant(path)) is not None:
            raise ConversionError(f"{path}: {meant}")
        raise ConversionError(
            f"{path}: {_described(path)}; qllama converts "
            + ", ".join(f.description for f in FORMATS.values())
            + " (--from FORMAT, if this is one of them under an unusual name)"
        )
    found = FORMATS.get(name)
    if found is None:
        raise ConversionError(f"--from: expected one of {', '.join(FORMATS)}, found {name!r}")
    for field, flag in _FLAGS.items():
        if getattr(options, field) is not None and field not in found.takes:
            raise ConversionError(f"{path}: {flag} is of no use for the format {name}")
    return found.open(path, options)


def files_of(path: Path) -> list[Path]:
    """List what opening a checkpoint may read; where one has changed, so may the model.

    Parameters
    ----------
    path : Path
        File or directory.

    Returns
    -------
    list of Path
        An unsplit GGUF file alone; else what may be weights, a config or part of a tokenizer:
        beside the weights, in directories of MindSpore's ranks, and above one of Meta's, whose
        tokenizer may be there.
    """
    if path.is_file() and path.suffix.lower() == ".gguf" and "-of-" not in path.name:
        return [path]
    directory = path.parent if path.is_file() else path
    places = [directory, *(p for p in directory.glob("rank_*") if p.is_dir())]
    found = {path, *(file for p in places for file in p.iterdir() if file.suffix in _READ)}
    if (directory / "params.json").is_file():
        above = directory.resolve().parent.iterdir()
        found.update(file for file in above if file.name.startswith(_TOKENIZER))
    return sorted(file for file in found if file.is_file())


def _meant(path: Path) -> str | None:
    """What is known to be wrong with a path that no format matches, and what to do."""
    if not path.is_dir():
        if _start(path) == MAGIC:
            return "a .qlm file already"
        if path.name.startswith(_ADAPTER):
            return f"a file of a LoRA adapter, {_NO_MODEL}'s directory as --lora"
        return None
    names = sorted(entry.name for entry in path.iterdir())
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if ggufs:
        return f"a directory of GGUF files; give the path of one, such as {shown(ggufs[0])}"
    if any(name.startswith(_ADAPTER) for name in names):
        return f"a LoRA adapter, {_NO_MODEL} as --lora"
    indices = [
        name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json"))
    ]
    if indices:
        return f"a directory with {shown(indices[0])}, but none of the shards; fetch them too"
    return None


def _described(path: Path) -> str:
    """What is to be seen of a path that nothing is known of."""
    if not path.is_dir():
        return f"not a checkpoint that qllama knows; the file begins with {_start(path)!r}"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "an empty directory"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (
        "a directory without a checkpoint that qllama knows; it holds "
        + ", ".join(shown(name) for name in names[:_LISTED])
        + more
    )


def _names(directory: Path, pattern: str) -> list[str]:
    return [entry.name for entry in directory.glob(pattern)]


def _begins_with(path: Path, magic: bytes) -> bool:
    return _start(path).startswith(magic)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)
