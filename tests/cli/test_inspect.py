"""`qllama inspect`: the facts of a tiny file, in every format."""

from __future__ import annotations

import json

import pytest
from tiny_qlm import CONFIG, SPECS

from qllama.cli.inspection.facts import gather_facts, part_of
from qllama.cli.inspection.tables import human_size
from qllama.format.reader import QlmFile


@pytest.fixture
def facts(tiny_qlm):
    with QlmFile.open(tiny_qlm) as file:
        return gather_facts(file)


def test_facts_need_the_header_only(tiny_qlm, monkeypatch):
    blob = property(lambda file: pytest.fail("reads the tokenizer"))
    with QlmFile.open(tiny_qlm) as file:
        n_bytes = len(file.tokenizer_blob)
        monkeypatch.setattr(QlmFile, "tokenizer_blob", blob)
        assert gather_facts(file).tokenizer["blob_n_bytes"] == n_bytes


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("model.layers.3.self_attn.q_proj.weight", "attention"),
        ("model.layers.3.self_attn.k_proj.bias", "attention"),
        ("model.layers.3.self_attn.q_norm.weight", "norms"),
        ("model.layers.3.mlp.down_proj.weight", "MLP"),
        ("model.layers.3.post_attention_layernorm.weight", "norms"),
        ("model.norm.weight", "norms"),
        ("lm_head.weight", "head"),
        ("model.rope_divisors", "other"),
    ],
)
def test_part_of_tensor_name(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (5 * 2**40, "5120.0 GiB"),
    ],
)
def test_human_size_chooses_the_unit(n_bytes, text):
    assert human_size(n_bytes) == text


def test_facts_count_parameters_of_each_part(facts):
    parts = {part.name: part for part in facts.parts}
    assert {name: part.parameters for name, part in parts.items()} == {
        "embeddings": 258 * 32,
        "attention": 32 * 32 * 2 + 16 * 32 * 2,
        "MLP": 3 * 64 * 32,
        "norms": 3 * 32,
        "total": 258 * 32 + 3072 + 6144 + 96,
    }
    assert parts["total"].types == ("f32", "q4", "q8_0")
    # q4 of 32 columns: 288 bytes a block and 128 a tile of 16 rows x 32 weights.
    assert parts["attention"].bits_per_weight == 8 * (288 + 128) / (16 * 32)


def test_facts_kv_bytes_are_two_f16_vectors_a_layer(facts):
    assert facts.kv_n_bytes_per_token == 2 * 2 * CONFIG.num_hidden_layers * CONFIG.kv_dim


def test_inspect_json_holds_the_facts(run, tiny_qlm):
    result = run("inspect", str(tiny_qlm), "--format", "json")
    data = json.loads(result.stdout)
    assert data["config"]["num_hidden_layers"] == 1
    assert data["file_n_bytes"] == tiny_qlm.stat().st_size
    assert data["tokenizer"]["eos_token_ids"] == [257]
    assert data["provenance"]["source"] == "tiny.gguf"
    assert "tensors" not in data


def test_inspect_json_lists_tensors_on_request(run, tiny_qlm):
    data = json.loads(run("inspect", str(tiny_qlm), "--format", "JSON", "--tensors").stdout)
    assert [tensor["name"] for tensor in data["tensors"]] == [spec.name for spec in SPECS]
    assert data["tensors"][0]["shape"] == [258, 32]


def test_inspect_table_aligns_columns(run, tiny_qlm):
    lines = run("inspect", str(tiny_qlm)).stdout.splitlines()
    start = lines.index("Weights")
    assert lines[start + 1] == "  part        parameters  size      bits/weight  types"
    assert lines[start + 2] == "  embeddings  8,256       9.0 KiB   8.96         q8_0"
    assert "  hidden_size              32" in lines
    assert "  rms_norm_eps             1e-05" in lines
    assert "Tensors" not in lines


def test_inspect_table_lists_tensors_on_request(run, tiny_qlm):
    lines = run("inspect", str(tiny_qlm), "--tensors").stdout.splitlines()
    rows = lines[lines.index("Tensors") + 2 :]
    assert len(rows) == len(SPECS)
    assert rows[0].split() == [
        "model.embed_tokens.weight",
        "q8_0",
        "258",
        "x",
        "32",
        "tile16",
        "9,248",
    ]


def test_inspect_markdown_is_made_of_tables(run, tiny_qlm):
    text = run("inspect", str(tiny_qlm), "--format", "markdown", "--tensors").stdout
    assert "## Weights\n\n| part | parameters | size | bits/weight | types |\n| --- | --- " in text
    assert text.count("\n| model.") == len(SPECS)


def test_inspect_mermaid_draws_the_forward_pass(run, tiny_qlm):
    text = run("inspect", str(tiny_qlm), "--format", "mermaid").stdout
    assert text.startswith("flowchart TD\n")
    assert 'subgraph block["decoder block, 1 times"]' in text
    assert "4 query, 2 KV heads of 8" in text
    assert "q8_0, tied" in text
    assert text.count('["') + text.count("[(") == text.count('"]') + text.count(")]")


def test_inspect_bad_file_is_one_line(run, tmp_path):
    path = tmp_path / "bad.qlm"
    path.write_bytes(b"not a model, but long enough to be read as a prelude of sixty-four bytes")
    result = run("inspect", str(path))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"qllama: error: {path}: ")
    assert result.stderr.count("\n") == 1
