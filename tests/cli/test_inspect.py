"""`qllama inspect`: files and checkpoints, in every format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import llama_3_2_3b
import pytest
from gguf import GGMLQuantizationType as Ggml
from tiny_gguf import write_gguf
from tiny_qlm import CONFIG, SPECS

from qllama.cli import inspect as inspect_module
from qllama.config import TokenizerConfig
from qllama.format import QlmWriter
from qllama.format.spec import tensor_n_bytes


@pytest.fixture
def inspect(run):
    """Run `qllama inspect` without measuring this machine."""

    def invoke(*arguments):
        return run("inspect", "--no-speed", *map(str, arguments))

    return invoke


def section(text, title):
    """Lines of the section `title` of a table."""
    lines = text.splitlines()
    start = lines.index(title) + 1
    end = lines.index("", start) if "" in lines[start:] else len(lines)
    return lines[start:end]


def test_inspect_json_holds_the_facts(inspect, tiny_qlm):
    data = json.loads(inspect(tiny_qlm, "--format", "json").stdout)
    assert data["config"]["num_hidden_layers"] == 1
    assert data["file_n_bytes"] == tiny_qlm.stat().st_size
    assert data["tokenizer"]["eos_token_ids"] == [257]
    assert data["provenance"]["source"] == "tiny.gguf"
    assert data["machine"]["read_gb_s"] is None
    assert "tensors" not in data


def test_inspect_json_lists_tensors_on_request(inspect, tiny_qlm):
    data = json.loads(inspect(tiny_qlm, "--format", "JSON", "--tensors").stdout)
    assert [tensor["name"] for tensor in data["tensors"]] == [spec.name for spec in SPECS]
    assert data["tensors"][0]["shape"] == [258, 32]


def test_inspect_table_shows_the_tree_the_parts_and_the_costs(inspect, tiny_qlm):
    text = inspect(tiny_qlm).stdout
    assert "  with the head apart  25,824: it is tied to the embedding" in section(text, "Model")
    assert "  attention            4 query heads on 2 KV heads of 8, 2 on each (GQA)" in text
    assert section(text, "Modules")[:4] == [
        "  module                           shape  parameters   share  type",
        "  llama                                       17,568  100.0%",
        "  ├ embed_tokens                258 x 32       8,256   47.0%  q8_0",
        "  ├ layers.0                                   9,280   52.8%",
    ]
    assert section(text, "Modules")[-1].split() == ["└", "norm", "32", "32", "0.2%", "f32"]
    assert section(text, "Weights")[0].split() == [
        *("part", "parameters", "share", "a", "layer", "size", "bits", "types")
    ]
    assert section(text, "To run")[1].split()[:3] == ["q4", "128", "16.5"]
    assert "tokens/s" not in text
    assert "  hidden_size              32" in section(text, "Hyperparameters")
    assert "  rms_norm_eps             1e-05" in text
    assert "Tensors" not in text.splitlines()


def test_inspect_table_lists_tensors_on_request(inspect, tiny_qlm):
    rows = section(inspect(tiny_qlm, "--tensors").stdout, "Tensors")[1:]
    assert len(rows) == len(SPECS)
    assert rows[0].split() == [
        *("model.embed_tokens.weight", "q8_0", "258", "x", "32", "tile16", "9,248")
    ]


def test_inspect_speed_is_estimated_from_what_was_just_measured(run, tiny_qlm, monkeypatch):
    measured = []
    monkeypatch.setattr(
        inspect_module, "_read_gb_s", lambda n_threads: measured.append(n_threads) or 12.5
    )
    text = run("inspect", str(tiny_qlm), "-t", "3").stdout
    assert measured == [3]
    assert "3 threads have just read memory at 12.5 GB/s" in text
    assert section(text, "To run")[0].split()[-3:] == ["tokens/s", "at", "end"]


def test_inspect_context_is_the_one_asked_for(inspect, tiny_qlm):
    data = json.loads(inspect(tiny_qlm, "--format", "json", "-c", "100").stdout)
    assert [run["n_ctx"] for run in data["runs"]] == [100]
    refused = inspect(tiny_qlm, "-c", "129")
    assert refused.exit_code == 1
    assert refused.stderr.endswith("to 128 tokens, found 129\n")


def test_inspect_markdown_is_made_of_tables(inspect, tiny_qlm):
    text = inspect(tiny_qlm, "--format", "markdown", "--tensors").stdout
    assert "## Weights\n\n| part | parameters | share | a layer |" in text
    assert "| &nbsp;&nbsp;&nbsp;&nbsp;- q_proj | 32 x 32 | 1,024 | 5.8% | q4 |" in text
    assert text.count("\n| model.") == len(SPECS)


def test_inspect_mermaid_draws_the_forward_pass(inspect, tiny_qlm):
    text = inspect(tiny_qlm, "--format", "mermaid").stdout
    assert text.startswith("flowchart TD\n")
    assert 'subgraph block["decoder block, 1 times"]' in text
    assert "4 query, 2 KV heads of 8" in text
    assert "self_attn, RoPE<br/>4 query, 2 KV heads of 8<br/>3.072 k q4" in text
    assert "lm_head<br/>32 to 258<br/>8.256 k q8_0, tied" in text
    assert text.count('["') + text.count("[(") == text.count('"]') + text.count(")]")


@pytest.mark.skipif(sys.platform == "win32", reason="needs files with holes")
def test_inspect_repository_of_llama_3_2_3b_reads_headers_only(inspect, tmp_path):
    llama_3_2_3b.write_repository(tmp_path)
    text = inspect(tmp_path).stdout
    model = section(text, "Model")
    assert "  format               huggingface" in model
    assert "  parameters           3,212,749,824 (3.213 G) at 16.00 bits" in model
    assert "  with the head apart  3,606,752,256: it is tied to the embedding" in model
    assert (
        "  positions            131,072, RoPE base 500,000, llama3 scaling by 32 from 8,192"
        in model
    )
    assert "  KV cache per token   114,688 bytes in f16, 60,928 in q8_0" in model
    rows = [line.split() for line in section(text, "Modules")]
    assert ["├", "layers.0-27", "28", "times", "100,669,440", "87.7%"] in rows
    assert ["│", "├", "self_attn", "25,165,824", "21.9%"] in rows
    assert ["│", "└", "mlp", "75,497,472", "65.8%"] in rows
    assert f"  problem  {tmp_path}: " in text  # of the tokenizer: there is none


def test_inspect_unreadable_file_is_one_line(inspect, tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    result = inspect(path)
    assert result.exit_code == 1
    assert result.stderr == f"qllama: error: {path}: cannot be read: Permission denied\n"


def test_inspect_name_of_no_user_is_one_line(inspect):
    result = inspect("~nobody-of-this-name/model.gguf")
    assert result.exit_code == 1
    assert "~nobody-of-this-name/model.gguf: no such file" in result.stderr


def test_inspect_file_that_cannot_run_says_why(inspect, tmp_path):
    path = tmp_path / "bad.qlm"
    tokenizer = TokenizerConfig("tokenizers")
    specs = [spec for spec in SPECS if ".mlp." not in spec.name]
    with QlmWriter(path, CONFIG, tokenizer, b"{}", specs, {}, {}) as writer:
        for spec in specs:
            writer.write(spec.name, bytes(tensor_n_bytes(spec)))
    text = inspect(path).stdout
    assert "  tensor model.layers.0.mlp.up_proj.weight is missing" in section(text, "Problems")
    assert "To run" not in text.splitlines()
    assert "mlp, SwiGLU<br/>64 wide<br/>missing" in inspect(path, "--format", "mermaid").stdout


def test_inspect_checkpoint_is_shown_as_it_is_and_as_it_would_become(inspect, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", arch="qwen2", tied=False, matrices=Ggml.Q5_0)
    text = inspect(path).stdout
    assert "  format              gguf" in section(text, "Model")
    modules = section(text, "Modules")
    rows = [line.split("  ") for line in modules]
    cells = [[cell.strip() for cell in row if cell] for row in rows]
    assert ["├ layers.0-1", "2 times", "590,848", "89.5%"] in cells
    assert ["│ │ ├ q_proj", "256 x 256 + bias", "65,792", "10.0%", "F32 Q5_0"] in cells
    runs = section(text, "To run, once converted")
    assert [line.split()[0] for line in runs[1:4]] == ["q4", "q8", "f16"]
    assert "  kind                  tokenizers" in section(text, "Tokenizer")
    assert not list(tmp_path.glob("*.qlm"))


def test_inspect_checkpoint_expand_shows_every_layer(inspect, tmp_path):
    path = write_gguf(tmp_path / "model.gguf")
    text = inspect(path, "--expand").stdout
    assert "  ├ layers.0 " in text
    assert "  ├ layers.1 " in text
    assert "layers.0-1" not in text


def test_inspect_checkpoint_takes_what_the_user_says_of_it(inspect, tmp_path):
    path = write_gguf(tmp_path / "model.gguf")
    result = inspect(path, "--from", "gguf", "--config", "config.json")
    assert result.exit_code == 1
    assert result.stderr == (f"qllama: error: {path}: --config is of no use for the format gguf\n")


def test_inspect_file_needs_nothing_said_of_it(inspect, tiny_qlm):
    result = inspect(tiny_qlm, "--from", "gguf")
    assert result.exit_code == 2
    assert f"are for checkpoints, found {tiny_qlm}." in result.stderr


def test_inspect_directory_that_holds_no_model_is_one_line(inspect, tmp_path):
    result = inspect(tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"qllama: error: {tmp_path}: an empty directory")
    assert result.stderr.count("\n") == 1


def test_inspect_bad_file_is_one_line(inspect, tmp_path):
    path = tmp_path / "bad.qlm"
    path.write_bytes(b"not a model, but long enough to be read as a prelude of sixty-four bytes")
    result = inspect(path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"qllama: error: {path}: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("encoding", "guide"), [("utf-8", "├ embed_tokens"), ("ascii", "|-embed_tokens")]
)
def test_inspect_pipe_gets_plain_text_that_its_encoding_has(tiny_qlm, encoding, guide):
    text = inspect_in_a_process(tiny_qlm, {"PYTHONIOENCODING": encoding}).decode(encoding)
    assert guide in text
    assert "\x1b" not in text


def test_inspect_colours_come_where_wanted_and_not_with_no_color(tiny_qlm):
    wanted = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    assert b"\x1b[36m" in inspect_in_a_process(tiny_qlm, wanted)
    assert b"\x1b[36m" not in inspect_in_a_process(tiny_qlm, wanted | {"NO_COLOR": "1"})


def inspect_in_a_process(path, environment):
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    code = "from qllama.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "inspect", "--no-speed", str(path)],
        env=inherited | environment,
        check=True,
        capture_output=True,
        timeout=120,
    ).stdout
