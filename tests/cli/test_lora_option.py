"""`--lora` of the commands that run a model."""

from __future__ import annotations

import pytest
from lora_sample import low_rank, projections, write_adapter
from tiny_gguf import write_gguf

from converter.pipeline import convert
from qllama.format import QlmFile


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    convert(write_gguf(directory / "tiny.gguf"), directory / "tiny.qlm", type="q8")
    return directory / "tiny.qlm"


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    with QlmFile.open(model) as file:
        arrays = low_rank(projections("q_proj", "v_proj", config=file.config))
    return write_adapter(tmp_path_factory.mktemp("a") / "adapter", arrays)


@pytest.mark.parametrize(
    "command", [("generate", "-p", "Hello", "--temp", "0", "-n", "8"), ("embed", "Hello")]
)
def test_lora_option_changes_what_the_model_computes(run, model, adapter, command):
    name, *arguments = command
    plain, adapted, off = (
        run(name, str(model), *arguments, *lora)
        for lora in ((), ("--lora", str(adapter)), ("--lora", f"{adapter}=0"))
    )
    assert [result.exit_code for result in (plain, adapted, off)] == [0, 0, 0]
    assert plain.stdout == off.stdout != adapted.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere", "nowhere: no such adapter directory"),
        ("nowhere=much", "expected a number after '=', found 'much'"),
    ],
)
def test_lora_option_that_is_no_adapter_is_one_line(run, model, argument, message):
    result = run("generate", str(model), "-p", "Hello", "--lora", argument)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
