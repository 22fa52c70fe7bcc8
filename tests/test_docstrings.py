"""Public docstrings name their parameters, and arrays have a stated shape.

A function of one parameter may leave it unnamed: its summary speaks of it anyway.
What the functions of a module or the methods of a class have in common may be said
once, in its docstring. A method of a Protocol may name the one that explains it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("qllama/**/*.py"), *ROOT.glob("converter/**/*.py")])


def public_functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Yield functions and methods without an underscore, and what is said around each.

    Click commands are left out: their docstrings are help texts.
    """
    shared = ast.get_docstring(tree) or ""
    scopes = [(tree.body, shared)]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            scopes.append((node.body, f"{shared}\n{ast.get_docstring(node) or ''}"))
    for body, around in scopes:
        for node in body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            decorators = {ast.unparse(d).split("(")[0] for d in node.decorator_list}
            if not decorators & {"click.command", "click.group", "overload"}:
                yield node, around


def undocumented(source: str) -> list[str]:
    """Return the parameters of public functions that `source` leaves unexplained."""
    found = []
    for function, around in public_functions(ast.parse(source)):
        docstring = ast.get_docstring(function) or ""
        if re.search(r"; see `[\w.]+`\.$", docstring):
            continue
        arguments = function.args
        parameters = [
            argument
            for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            if argument.arg not in ("self", "cls") and not argument.arg.startswith("_")
        ]
        for parameter in parameters:
            name = parameter.arg
            annotation = ast.unparse(parameter.annotation) if parameter.annotation else ""
            shape = rf"^\s*([\w*]+, )*{name}(, \w+)* : .*\("
            if "NDArray" in annotation and not re.search(shape, docstring, re.MULTILINE):
                found.append(f"{function.name}({name}): no `{name} : float32, (n_tokens, k)`")
            elif len(parameters) > 1 and not re.search(rf"\b{name}\b", f"{docstring}\n{around}"):
                found.append(f"{function.name}({name}): not in the docstring")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_public_function_names_every_parameter(path):
    assert undocumented(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        'def f(x, y):\n    """Adds `x`."""',
        'class A:\n    def f(self, x, y):\n        """Adds `x`."""',
        'def f(x: npt.NDArray[np.float32]):\n    """Sums `x`."""',
    ],
)
def test_docstrings_missing_explanation_is_found(source):
    assert len(undocumented(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        'def f(x):\n    """Doubles it."""',
        'def f(x, y):\n    """Adds `x` and `y`."""',
        "def _f(x, y):\n    pass",
        '"""All take an `x`."""\n\ndef f(x, y):\n    """Adds `y`."""',
        'def f(x, y):\n    """Adds; see `Adder.f`."""',
        'def f(x: npt.NDArray[np.float32]):\n    """Sum.\n\n    x : float32, (n,)\n    """',
        '@click.command()\ndef command(x):\n    """Does it."""',
    ],
)
def test_docstrings_good_or_private_is_accepted(source):
    assert undocumented(source) == []
