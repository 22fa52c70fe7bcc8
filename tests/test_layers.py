"""The architecture as a test: imports point downward, files stay readable."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("qllama/**/*.py"), *ROOT.glob("converter/**/*.py")])
MAX_LINES = 400

# Lowest first. Layers of one row do not import each other.
LAYERS = (
    ("control_groups", "errors", "notice", "paths", "progress"),
    ("config", "checksum", "memory"),
    ("tensors",),
    ("quant",),
    ("format",),
    ("kernels",),
    ("model", "tokenizer"),
    ("generation", "hub", "tracing"),
    ("api",),
    ("bench", "evaluation"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

# What the converter builds on, and who may call it (always lazily: it is a heavy guest).
CONVERTER_USES = (
    "errors",
    "paths",
    "notice",
    "progress",
    "checksum",
    "config",
    "tensors",
    "quant",
    "format",
    "tokenizer",
    "kernels.cores",
    "kernels.halves",
    "kernels.quantize",
    "kernels.quantize_error",
    # The self-check's forward pass: definitions only, nothing of the compiled one.
    "kernels.reference",
    "model.rotary",
)
CONVERTER_CALLERS = ("hub", "cli")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, bool]]:
    """Yield (dotted name, whether it happens when the module is imported)."""
    type_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        eager = id(node) not in type_only and id(node) not in lazy
        if isinstance(node, ast.Import):
            yield from ((alias.name, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                base = ".".join([*above[: len(above) - node.level + 1], base]).rstrip(".")
            # "from qllama import api" imports qllama.api: names may be modules.
            yield from ((f"{base}.{alias.name}", eager) for alias in node.names)


def layer(dotted: str) -> str:
    """Return the layer of `qllama.<layer>...`; names of the package itself come from the api."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANK else "api"


def violations(path: Path, source: str) -> list[str]:
    """Return what the imports of `source`, standing at `path`, break."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []
    for target, eager in imports(ast.parse(source), package):
        top = target.split(".")[0]
        if name.startswith("converter"):
            allowed = any(
                target == f"qllama.{use}" or target.startswith(f"qllama.{use}.")
                for use in CONVERTER_USES
            )
            bad = top == "qllama" and not allowed
        elif top == "converter":
            bad = layer(name) not in CONVERTER_CALLERS or eager
        elif top != "qllama":
            bad = False
        elif name == "qllama":
            bad = eager and RANK[layer(target)] > RANK["config"]
        else:
            here, there = layer(name), layer(target)
            bad = here != there and RANK[there] >= RANK[here]
        if bad:
            found.append(f"{name} imports {target}{' at import time' if eager else ''}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers_source_file_imports_only_downward(path):
    assert violations(path, path.read_text(encoding="utf-8")) == []


def test_layers_every_module_belongs_to_one():
    names = [module_name(path) for path in SOURCES]
    assert {name.split(".")[1] for name in names if name.startswith("qllama.")} <= set(RANK)


def test_layers_contributing_says_what_the_converter_uses():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    said = re.search("`converter` stands beside them: .*?; only (.*?) call", text, re.DOTALL)
    below = {name for row in LAYERS[: 1 + LAYERS.index(("format",))] for name in row}
    used = set(re.findall("`([^`]+)`", said[0])) - {"converter", "format"}
    assert used == set(CONVERTER_USES) - below | set(CONVERTER_CALLERS)
    assert re.findall("`([^`]+)`", said[1]) == list(CONVERTER_CALLERS)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("qllama/quant/types.py", "from qllama.format.spec import MAGIC"),
        ("qllama/quant/types.py", "def f():\n    import qllama.kernels"),
        ("qllama/kernels/linear.py", "from ..model import engine"),
        ("qllama/tokenizer/bpe.py", "from qllama.model import kv_cache"),
        ("qllama/format/reader.py", "from qllama import Llama"),
        ("qllama/__init__.py", "from qllama.api import Llama"),
        ("qllama/cli/convert.py", "import converter.pipeline"),
        ("qllama/api/llama.py", "def f():\n    import converter"),
        ("converter/pipeline.py", "from qllama.kernels.linear import matvec"),
    ],
)
def test_layers_upward_import_is_found(file, source):
    assert len(violations(ROOT / file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("qllama/format/spec.py", "from qllama.quant.types import BLOCK"),
        ("qllama/kernels/linear.py", "from . import simd"),
        ("qllama/__init__.py", "def __getattr__(name):\n    from qllama.api import Llama"),
        ("qllama/cli/convert.py", "def f():\n    import converter.pipeline"),
        ("converter/pipeline.py", "from qllama.kernels.quantize import quantize"),
    ],
)
def test_layers_downward_import_is_accepted(file, source):
    assert violations(ROOT / file, source) == []


def test_layers_source_files_stay_below_the_line_cap():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in [*SOURCES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    }
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import qllama", "numba"),
        ("import qllama", "numpy"),
        ("from qllama import Llama", "converter"),
        ("from qllama import Llama", "huggingface_hub"),
        ("from qllama import Llama", "llguidance"),
        ("from qllama.cli import cli; cli.main(['--help'])", "numpy"),
        ("from qllama.cli import cli; cli.main(['chat', '--help'])", "numpy"),
        ("from qllama.cli import cli; cli.main(['--help'])", "rich"),
        ("from qllama.cli import cli; cli.main(['--help'])", "prompt_toolkit"),
    ],
)
def test_layers_start_up_loads_nothing_heavy(statement, unwanted):
    code = (
        "import sys\n"
        f"try:\n    {statement}\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
        f"assert {unwanted!r} not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
