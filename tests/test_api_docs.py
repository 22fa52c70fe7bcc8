"""The examples of documents, run in order with the real small model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lora_sample import low_rank, projections, write_adapter

from qllama.format import QlmFile

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["api.md", "inspection.md"])
def test_docs_examples_run(smollm2_q8, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / name).read_text(encoding="utf-8")
    with QlmFile.open(smollm2_q8) as file:
        arrays = low_rank(projections("q_proj", "v_proj", config=file.config))
    adapter = write_adapter(tmp_path / "adapter", arrays)
    names = {"model_path": str(smollm2_q8), "adapter_path": str(adapter)}
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], f"docs/{name}", "exec"), names)


def test_inspection_docs_list_the_activations_of_the_model(smollm2_q8):
    from qllama import Llama

    text = (DOCS / "inspection.md").read_text(encoding="utf-8")
    listed = re.search(r"```text\n(<.*?)```", text, re.DOTALL)
    with Llama(smollm2_q8, n_ctx=64) as llm:
        assert listed[1].rstrip() == repr(llm.activations())
