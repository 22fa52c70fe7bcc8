"""The examples of docs/api.md, run in order with the real small model."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def test_api_docs_examples_run(smollm2_q8, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"model_path": str(smollm2_q8)}
    for block in re.finditer(r"```python\n(.*?)```", TEXT, re.DOTALL):
        line = TEXT[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], "docs/api.md", "exec"), names)
