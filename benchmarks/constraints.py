"""What a constraint costs a token, by llguidance and by outlines-core; see `--help`."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Protocol

import click
import numpy as np
import numpy.typing as npt

from converter.tokenizer_files import tokenizer_from_path
from qllama.bench.markdown import table
from qllama.errors import TokenizerError
from qllama.format import QlmFile
from qllama.generation.constraint import Constraint
from qllama.generation.guide import Guides
from qllama.tokenizer import Tokenizer, load_tokenizer

_RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "born": {"type": "string", "format": "date"},
        "skills": {
            "type": "array",
            "items": {"enum": ["painting", "singing", "welding"]},
            "maxItems": 4,
        },
        "home": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "floor": {"type": "integer"}},
            "required": ["city", "floor"],
        },
    },
    "required": ["name", "born", "skills", "home"],
}
_TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
_CASES = {
    "record": (
        {"json_schema": _RECORD},
        '{"name": "Anna Berg", "born": "1990-05-05", "skills": ["painting", "singing"], '
        '"home": {"city": "Göteborg", "floor": 3}}',
    ),
    "text": (
        {"json_schema": _TEXT},
        '{"text": "A tortoise lived at the foot of a hill, where it ate grass all summer."}',
    ),
    "date": ({"regex": "[0-9]{4}-[0-9]{2}-[0-9]{2}"}, "1990-05-05"),
}


class Masks(Protocol):
    """A constraint's state, of either library."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which tokens may come."""

    def accept(self, token: int) -> bool:
        """Note that a token came."""


@click.command(
    epilog="Example: python benchmarks/constraints.py smollm2.qlm llama3/tokenizer.model"
)
@click.argument(
    "vocabularies",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--rows",
    default=128256,
    show_default=True,
    help="Tokens of a VOCABULARY that is no .qlm file; those of Llama 3 unless given.",
)
@click.option("-r", "--repetitions", type=click.IntRange(1), default=5, show_default=True)
def main(vocabularies: tuple[Path, ...], rows: int, repetitions: int) -> None:
    """Follow a text of each form with masks, and print what they took.

    A VOCABULARY is a .qlm file or a tokenizer's. `compile` is seconds until the first mask of a
    new form; `mask` is the median of microseconds to get a token's mask as an array and to
    note the token, `longest` the most that one took. outlines-core is measured where it is
    installed.
    """
    lines = []
    for path in vocabularies:
        tokenizer = _tokenizer(path, rows)
        for case, (options, text) in _CASES.items():
            ids = tokenizer.encode(text, add_special=False, parse_special=False)
            constraint = Constraint.of(**options)  # type: ignore[arg-type]
            assert constraint is not None
            for name, compiler in _compilers(tokenizer):
                seconds, steps = _measured(compiler, constraint, ids, repetitions)
                cells = [f"{seconds:.3f}", f"{1e6 * np.median(steps):.0f}"]
                cells.append(f"{1e6 * max(steps):.0f}")
                lines.append([f"{tokenizer.vocab_size}", case, name, *cells])
    header = ["tokens", "form", "library", "compile (s)", "mask (us)", "longest (us)"]
    click.echo(table(header, lines, words={"form", "library"}))


def _tokenizer(path: Path, rows: int) -> Tokenizer:
    if path.suffix == ".qlm":
        with QlmFile.open(path) as file:
            return load_tokenizer(file.tokenizer, file.tokenizer_blob)
    return load_tokenizer(*tokenizer_from_path(path, rows, {}))


_Compiler = Callable[[Constraint], Callable[[], Masks]]


def _compilers(tokenizer: Tokenizer) -> Iterator[tuple[str, _Compiler]]:
    """Yield compilers whose vocabulary is made, but which have compiled nothing."""
    guides = Guides(tokenizer)
    warm = Constraint.of(choice=["a"])
    assert warm is not None
    guides.guide(warm, (), None).prepare()
    yield "llguidance", lambda constraint: lambda: guides.guide(constraint, (), None)
    if importlib.util.find_spec("outlines_core"):
        yield "outlines-core", _outlines(tokenizer)


def _measured(
    compiler: _Compiler, constraint: Constraint, ids: Collection[int], repetitions: int
) -> tuple[float, list[float]]:
    started = time.perf_counter()
    new = compiler(constraint)
    new().allowed()
    compiled = time.perf_counter() - started
    steps = []
    for _ in range(repetitions):
        masks = new()
        for token in ids:
            started = time.perf_counter()
            is_allowed = masks.allowed()[token]
            masks.accept(token)
            steps.append(time.perf_counter() - started)
            assert is_allowed
    return compiled, steps


def _outlines(tokenizer: Tokenizer) -> _Compiler:
    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    end = tokenizer.config.eos_token_ids[0]
    ids: dict[bytes, list[int]] = {}
    for token in range(tokenizer.vocab_size):
        try:
            spelled = tokenizer.token_bytes(token)
        except TokenizerError:
            continue
        if spelled and token != end:
            ids.setdefault(spelled, []).append(token)
    vocabulary = Vocabulary(end, ids)

    class Outlines:
        def __init__(self, index: Index) -> None:
            self._guide = Guide(index)
            self._packed = np.empty((tokenizer.vocab_size + 31) // 32, np.int32)

        def allowed(self) -> npt.NDArray[np.bool_]:
            packed = self._packed
            self._guide.write_mask_into(packed.ctypes.data, packed.size, packed.itemsize)
            return np.unpackbits(packed.view(np.uint8), bitorder="little").view(np.bool_)

        def accept(self, token: int) -> bool:
            self._guide.advance(token, return_tokens=False)
            return False

    def compiler(constraint: Constraint) -> Callable[[], Masks]:
        regex = constraint.text
        if constraint.kind == "schema":
            regex = build_regex_from_schema(json.dumps(json.loads(regex)), "[ ]?")
        index = Index(regex, vocabulary)
        return lambda: Outlines(index)

    return compiler


if __name__ == "__main__":
    main()
