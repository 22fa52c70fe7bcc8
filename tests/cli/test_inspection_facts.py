"""The facts that `qllama inspect` draws from a model: counts, parts, the tree, costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llama_3_2_3b import CONFIG as LLAMA_3_2_3B
from tiny_qlm import CONFIG

from converter.sources.base import OpenedSource, SourceTensor
from qllama.cli.inspection.costs import MachineFacts, chosen_contexts
from qllama.cli.inspection.facts import gather_facts, part_of
from qllama.cli.inspection.modules import module_tree
from qllama.cli.inspection.subject import TensorFacts, subject_of_checkpoint, subject_of_file
from qllama.config import ModelConfig, TokenizerConfig
from qllama.errors import ContextLengthError, TokenizerError
from qllama.format import QlmWriter, TensorSpec
from qllama.format.reader import QlmFile
from qllama.format.spec import tensor_n_bytes
from qllama.tensors import expected_shapes

MACHINE = MachineFacts(n_threads=2, read_gb_s=40.0, free_n_bytes=2**34)


class Unread(SourceTensor):
    """A tensor of bfloat16 whose values nobody may ask for."""

    source_type = "BF16"

    def __init__(self, name, shape):
        self.where, self.shape = name, shape
        self.n_bytes = 2 * int(TensorFacts(name, "", shape, 0).parameters)

    def read(self, start, stop):
        raise AssertionError(f"{self.where} is read")


def no_tokenizer(vocab_size, path):
    raise TokenizerError("model: no tokenizer.json")


def checkpoint_facts(config, n_ctx=None, *, expand=False, machine=MACHINE):
    """Facts of a checkpoint that has nothing but a config."""
    tensors = {name: Unread(name, shape) for name, shape in expected_shapes(config).items()}
    source = OpenedSource(config, no_tokenizer, tensors, (), {"format": "huggingface"})
    subject = subject_of_checkpoint(Path("model"), source)
    contexts = chosen_contexts(config, n_ctx)
    return gather_facts(subject, contexts, machine=machine, expand=expand)


@pytest.fixture
def facts(tiny_qlm):
    with QlmFile.open(tiny_qlm) as file:
        return gather_facts(subject_of_file(file), (64, 128), machine=MACHINE)


def modules_by_name(module):
    found = {module.name: module}
    for child in module.children:
        found |= modules_by_name(child)
    return found


def test_facts_of_llama_3_2_3b_are_the_published_ones():
    facts = checkpoint_facts(LLAMA_3_2_3B, n_ctx=8192)
    assert facts.parameters == 3_212_749_824
    assert facts.parameters_untied == 3_606_752_256
    assert facts.query_heads_per_kv_head == 3
    assert facts.kv_n_bytes_per_token == 114_688
    assert facts.contexts[0].kv_n_bytes == 8192 * 114_688
    modules = modules_by_name(facts.modules)
    assert modules["layers.0-27"].count == 28
    assert {name: modules[name].parameters for name in ("self_attn", "mlp")} == {
        "self_attn": 25_165_824,
        "mlp": 75_497_472,
    }
    millions = {
        name.removesuffix("_proj"): f"{module.parameters / 1e6:.1f}"
        for name, module in modules.items()
        if name.endswith("_proj")
    }
    assert millions == {
        "q": "9.4",
        "k": "3.1",
        "v": "3.1",
        "o": "9.4",
        "gate": "25.2",
        "up": "25.2",
        "down": "25.2",
    }
    parts = {part.name: part for part in facts.parts}
    assert parts["attention"].parameters_per_layer == 25_165_824
    assert parts["MLP"].parameters_per_layer == 75_497_472
    assert parts["embeddings"].share == pytest.approx(394_002_432 / 3_212_749_824)


def test_facts_multiply_adds_are_the_matrices_and_attention():
    facts = checkpoint_facts(LLAMA_3_2_3B, n_ctx=1000)
    # All parameters but the norms; a tied embedding works as the head.
    assert facts.macs_per_token == 3_212_749_824 - (2 * 28 + 1) * 3072
    # Scores and outputs: two for each query value, layer and position.
    assert facts.contexts[0].macs == facts.macs_per_token + 2 * 24 * 128 * 28 * 1000
    assert facts.contexts[0].flops == 2 * facts.contexts[0].macs


def test_facts_untied_embedding_is_looked_up_and_not_multiplied():
    config = ModelConfig.from_dict(LLAMA_3_2_3B.to_dict() | {"tie_word_embeddings": False})
    tied, untied = checkpoint_facts(LLAMA_3_2_3B), checkpoint_facts(config)
    assert untied.parameters == untied.parameters_untied == tied.parameters_untied
    assert untied.macs_per_token == tied.macs_per_token


def test_facts_rope_divisors_are_no_parameters():
    config = ModelConfig.from_dict(
        LLAMA_3_2_3B.to_dict() | {"rope_scaling": {"rope_type": "divisors"}}
    )
    assert checkpoint_facts(config).parameters == 3_212_749_824


def test_facts_checkpoint_runs_as_each_usual_preset_with_two_contexts():
    runs = checkpoint_facts(LLAMA_3_2_3B).runs
    assert [(run.storage, run.n_ctx) for run in runs] == [
        (name, n_ctx) for name in ("q4", "q8", "f16") for n_ctx in (4096, 131072)
    ]
    f16 = runs[4]
    # Norms are float32.
    assert f16.weights_n_bytes == 2 * 3_212_749_824 + 2 * (2 * 28 + 1) * 3072
    assert f16.kv_n_bytes == 4096 * 114_688
    assert f16.memory_n_bytes == f16.weights_n_bytes + f16.kv_n_bytes + f16.buffers_n_bytes
    assert 0 < f16.buffers_n_bytes < 2**28


def test_facts_speed_is_what_a_token_reads_at_the_share_of_the_measured_bandwidth():
    run = checkpoint_facts(LLAMA_3_2_3B, n_ctx=4096).runs[0]
    assert run.read_n_bytes == run.weights_n_bytes + run.kv_n_bytes
    share = MACHINE.typical_share
    assert run.tokens_per_s == pytest.approx(share * 40e9 / run.read_n_bytes)
    assert run.first_tokens_per_s == pytest.approx(share * 40e9 / (run.weights_n_bytes + 114_688))


def test_facts_without_a_measured_bandwidth_have_no_speed():
    machine = MachineFacts(n_threads=2, read_gb_s=None, free_n_bytes=2**34)
    run = checkpoint_facts(LLAMA_3_2_3B, machine=machine).runs[0]
    assert (run.first_tokens_per_s, run.tokens_per_s) == (None, None)


def test_facts_checkpoint_without_tokenizer_says_so():
    facts = checkpoint_facts(LLAMA_3_2_3B)
    assert facts.tokenizer == {"problem": "model: no tokenizer.json"}
    assert facts.format == "huggingface"


def test_facts_are_plain_json():
    data = checkpoint_facts(LLAMA_3_2_3B).to_dict()
    assert json.loads(json.dumps(data))["modules"]["children"][1]["count"] == 28


def test_facts_need_the_header_only(tiny_qlm, monkeypatch):
    blob = property(lambda file: pytest.fail("reads the tokenizer"))
    with QlmFile.open(tiny_qlm) as file:
        n_bytes = len(file.tokenizer_blob)
        monkeypatch.setattr(QlmFile, "tokenizer_blob", blob)
        assert subject_of_file(file).tokenizer["blob_n_bytes"] == n_bytes


def test_facts_count_parameters_of_each_part(facts):
    parts = {part.name: part for part in facts.parts}
    assert {name: part.parameters for name, part in parts.items()} == {
        "embeddings": 258 * 32,
        "attention": 32 * 32 * 2 + 16 * 32 * 2,
        "MLP": 3 * 64 * 32,
        "norms": 3 * 32,
        "total": 258 * 32 + 3072 + 6144 + 96,
    }
    assert parts["norms"].parameters_per_layer == 2 * 32
    assert parts["total"].types == ("f32", "q4", "q8_0")
    # q4 of 32 columns: 288 bytes a block and 128 a tile of 16 rows x 32 weights.
    assert parts["attention"].bits_per_weight == 8 * (288 + 128) / (16 * 32)


def test_facts_kv_bytes_are_two_f16_vectors_a_layer_padded_to_blocks(facts):
    # Heads of 8 values take the room of 32.
    assert facts.kv_n_bytes_per_token == 2 * 2 * CONFIG.num_hidden_layers * 2 * 32


def test_facts_file_runs_as_it_is(facts):
    assert [(run.storage, run.n_ctx) for run in facts.runs] == [("q4", 64), ("q4", 128)]
    assert facts.runs[0].weights_n_bytes == facts.parts[-1].n_bytes


def test_facts_file_that_lacks_a_tensor_names_it_and_has_no_costs(tmp_path):
    path = tmp_path / "bad.qlm"
    specs = [TensorSpec("model.norm.weight", "f32", (32,)), TensorSpec("odd", "f32", (3,))]
    tokenizer = TokenizerConfig("tokenizers")
    with QlmWriter(path, CONFIG, tokenizer, b"{}", specs, {}, {}) as writer:
        for spec in specs:
            writer.write(spec.name, bytes(tensor_n_bytes(spec)))
    with QlmFile.open(path) as file:
        facts = gather_facts(subject_of_file(file), (128,), machine=MACHINE)
    assert "tensor model.embed_tokens.weight is missing" in facts.problems
    assert "tensor odd is not one that this model uses" in facts.problems
    assert facts.runs == facts.contexts == ()
    assert facts.parameters == 35


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


def tensor(name, *shape, type="q4"):
    return TensorFacts(name, type, shape, n_bytes=1)


def layer(index, *, wide=4, type="q4"):
    return [
        tensor(f"model.layers.{index}.mlp.up_proj.weight", wide, 4, type=type),
        tensor(f"model.layers.{index}.mlp.up_proj.bias", wide, type="f32"),
    ]


def test_modules_fold_layers_of_the_same_shapes_whatever_their_types():
    tree = module_tree("m", [*layer(0), *layer(1, type="q8_0"), *layer(2)], expand=False)
    (layers,) = tree.children
    assert (layers.name, layers.count, layers.parameters, layers.n_bytes) == (
        "layers.0-2",
        3,
        20,
        6,
    )
    assert layers.types == ("f32", "q4", "q8_0")
    up = modules_by_name(tree)["up_proj"]
    assert (up.count, up.shape, up.has_bias, up.parameters) == (3, (4, 4), True, 20)


def test_modules_do_not_fold_what_differs_or_stands_apart():
    tree = module_tree("m", [*layer(0), *layer(1), *layer(2, wide=8), *layer(3)], expand=False)
    assert [child.name for child in tree.children] == ["layers.0-1", "layers.2", "layers.3"]


def test_modules_expand_shows_every_layer():
    tree = module_tree("m", [*layer(0), *layer(1)], expand=True)
    assert [(child.name, child.count) for child in tree.children] == [
        ("layers.0", 1),
        ("layers.1", 1),
    ]


@pytest.mark.parametrize(
    ("limit", "wanted", "contexts"),
    [
        (8192, None, (4096, 8192)),
        (2048, None, (2048,)),
        (4096, None, (4096,)),
        (8192, 0, (8192,)),
        (8192, 100, (100,)),
    ],
)
def test_contexts_are_the_wanted_one_or_a_usual_and_the_longest(limit, wanted, contexts):
    config = ModelConfig.from_dict(CONFIG.to_dict() | {"max_position_embeddings": limit})
    assert chosen_contexts(config, wanted) == contexts


def test_contexts_longer_than_the_model_are_refused():
    with pytest.raises(ContextLengthError, match=r"^-c: expected 0 .* to 128 tokens, found 129$"):
        chosen_contexts(CONFIG, 129)
