"""LoRA adapters at run time: each gives what it gives alone, whatever took turns with it."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from lora_sample import low_rank, projections, write_adapter
from tiny_gguf import write_gguf

from converter.pipeline import convert
from qllama import Llama
from qllama.config import ModelConfig
from qllama.errors import ConversionError, StateError, UnsupportedModelError
from qllama.format import QlmFile
from qllama.model import reference

PROMPT = list(range(10, 50))
GREEDY = {"temperature": 0, "max_tokens": 8}
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapter(directory, config: ModelConfig, *modules, rank=8, size=0.1, seed=0, **fields):
    """Write an adapter of random values of about `size`."""
    shapes = projections(*modules, config=config)
    random = np.random.default_rng(seed)
    arrays = {
        name: size * random.standard_normal(array.shape, np.float32)
        for name, array in low_rank(shapes, rank=rank).items()
    }
    return write_adapter(directory, arrays, r=rank, target_modules=list(modules), **fields)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    convert(write_gguf(directory / "tiny.gguf", context_length=256), directory / "t.qlm", type="q8")
    return directory / "t.qlm"


@pytest.fixture(scope="module")
def pirate(path, tmp_path_factory):
    with QlmFile.open(path) as file:
        return adapter(tmp_path_factory.mktemp("a") / "pirate", file.config, *EVERY)


@pytest.fixture(scope="module")
def poet(path, tmp_path_factory):
    with QlmFile.open(path) as file:
        return adapter(tmp_path_factory.mktemp("a") / "poet", file.config, "q_proj", seed=1)


def logits(path, lora=None, tokens=PROMPT, **how):
    with Llama(path, lora=lora, **how) as llm:
        return llm.logits(tokens)


def test_lora_changes_the_model_and_none_is_the_model_as_it_was(path, pirate, poet):
    alone = {directory: logits(path, directory) for directory in (None, pirate, poet)}
    assert (alone[None] != alone[pirate]).any()
    assert (alone[pirate] != alone[poet]).any()
    with Llama(path) as llm:
        for directory in (None, pirate, poet, None, pirate):
            llm.lora = directory
            assert list(llm.lora) == ([] if directory is None else [str(directory)])
            np.testing.assert_array_equal(llm.logits(PROMPT), alone[directory])


def test_lora_prefixes_are_reused_under_their_own_adapter_only(path, pirate, poet):
    expected = {}
    for directory in (None, pirate, poet):
        with Llama(path, lora=directory, cache_bytes=0) as llm:
            expected[directory] = llm.generate(PROMPT, **GREEDY).token_ids
    with Llama(path) as llm:
        found = []
        for directory in (None, pirate, poet, pirate, None, poet):
            llm.lora = directory
            answer = llm.generate(PROMPT, **GREEDY)
            assert answer.token_ids == expected[directory]
            found.append(answer.timings.reused_tokens)
    assert found == [0, 0, 0, 39, 39, 39]


def test_lora_streams_go_on_as_they_began(path, pirate, poet):
    alone = {}
    for directory in (None, pirate, poet):
        with Llama(path, lora=directory) as llm:
            alone[directory] = llm.generate(PROMPT, **GREEDY).token_ids
    with Llama(path) as llm:
        streams = {}
        for directory in (None, pirate, poet):
            llm.lora = directory
            streams[directory] = llm.generate(PROMPT, stream=True, **GREEDY)
        for _ in range(GREEDY["max_tokens"] + 1):
            for stream in streams.values():
                next(stream, None)
        assert {d: stream.token_ids for d, stream in streams.items()} == alone


def test_lora_objects_of_several_threads_compute_what_each_computes_alone(path, pirate, poet):
    alone = {directory: logits(path, directory) for directory in (None, pirate, poet)}
    with Llama(path) as llm:
        found = {}

        def work(directory):
            own = llm.with_lora(directory)
            found[directory] = [own.logits(PROMPT) for _ in range(3)]

        threads = [threading.Thread(target=work, args=(directory,)) for directory in alone]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert llm.lora == {}
    for directory, arrays in found.items():
        for array in arrays:
            np.testing.assert_array_equal(array, alone[directory])


def test_with_lora_shares_the_model_and_closes_with_it(path, pirate):
    llm = Llama(path)
    other = llm.with_lora(pirate)
    assert "1 LoRA adapter" in repr(other)
    assert "LoRA" in other._repr_html_()
    assert "LoRA" not in repr(llm)
    llm.close()
    with pytest.raises(ValueError, match="closed"):
        other.generate(PROMPT)


def test_lora_holds_for_batches_beams_vectors_and_scores(path, pirate):
    with Llama(path, lora=pirate) as llm, Llama(path) as plain:
        several = llm.generate(PROMPT, n=3, max_tokens=5, seed=4)
        assert several == [llm.generate(PROMPT, max_tokens=5, seed=4 + i) for i in range(3)]
        (best,) = llm.beam_search(PROMPT, n_beams=1, max_tokens=5)
        assert best.token_ids == llm.generate(PROMPT, temperature=0, max_tokens=5).token_ids
        text = PROMPT[:12]
        scored = llm.token_logprobs(text)
        assert [t.logprob for t in scored] != [t.logprob for t in plain.token_logprobs(text)]
        vectors = llm.embed([text, PROMPT])
        assert (vectors != plain.embed([text, PROMPT])).any(axis=1).all()
        plain.lora = pirate
        np.testing.assert_array_equal(plain.embed([text, PROMPT]), vectors)
        assert plain.token_logprobs(text) == scored


def test_lora_state_goes_on_under_the_same_adapters_only(path, pirate, poet):
    with Llama(path, lora=pirate) as llm:
        llm.generate(PROMPT, max_tokens=0)
        state = llm.save_state()
        expected = llm.generate([*PROMPT, 60], **GREEDY)
        for other in (None, poet, {pirate: 0.5}):
            with pytest.raises(StateError, match="other LoRA adapters"):
                llm.with_lora(other).load_state(state)
    with Llama(path) as llm:
        llm.lora = pirate
        llm.load_state(state)
        found = llm.generate([*PROMPT, 60], **GREEDY)
        assert found.token_ids == expected.token_ids
        assert found.timings.reused_tokens == len(PROMPT)


def test_lora_is_pickled(path, pirate):
    with Llama(path, lora={pirate: 0.5}) as llm, pickle.loads(pickle.dumps(llm)) as other:
        assert other.lora == llm.lora == {str(pirate): 0.5}
        np.testing.assert_array_equal(other.logits(PROMPT), llm.logits(PROMPT))


def test_lora_spellings_mean_the_same(path, pirate, poet, monkeypatch):
    monkeypatch.chdir(pirate.parent)
    both = logits(path, [pirate, (poet, 0.5)])
    assert (both != logits(path, [pirate, poet])).any()
    np.testing.assert_array_equal(both, logits(path, {str(pirate): 1, str(poet): 0.5}))
    one = logits(path, [(pirate, 2.0)])
    np.testing.assert_array_equal(one, logits(path, lora_path="pirate", lora_scale=2.0))
    np.testing.assert_array_equal(logits(path), logits(path, {pirate: 0.0}))
    np.testing.assert_array_equal(logits(path), logits(path, []))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"lora": 3}, TypeError, "lora: expected"),
        ({"lora": [3]}, TypeError, "lora: expected directories.*found 3"),
        ({"lora": ["a", ("a", 0.5)]}, ValueError, "lora: a is there twice"),
        ({"lora": {"a": float("nan")}}, ValueError, "finite scale of a, found nan"),
        ({"lora": "a", "lora_path": "b"}, ValueError, "lora and lora_path: expected one"),
        ({"lora": "nowhere"}, ConversionError, "nowhere: no such adapter directory"),
    ],
    ids=str,
)
def test_lora_argument_that_is_none_is_refused(path, how, error, message):
    with pytest.raises(error, match=message):
        Llama(path, **how)


def test_lora_of_another_model_names_tensor_expected_and_found(path, tmp_path, pirate):
    other = ModelConfig.from_dict({**_config(path).to_dict(), "hidden_size": 128})
    directory = adapter(tmp_path / "other", other, "q_proj")
    before = logits(path, pirate)
    with Llama(path, lora=pirate) as llm:
        with pytest.raises(ConversionError) as raised:
            llm.lora = directory
        # What was in use still is.
        assert list(llm.lora) == [str(pirate)]
        np.testing.assert_array_equal(llm.logits(PROMPT), before)
    message = str(raised.value)
    assert "\n" not in message
    assert "q_proj.lora_B.weight" in message
    assert "has shape (256, 128), the model's model.layers.0.self_attn.q_proj.weight" in message
    assert "(256, 256); is the adapter for another model?" in message


@pytest.mark.parametrize(
    ("name", "rows", "found"),
    [
        ("lm_head.weight", 270, r"replaces lm_head.weight whole"),
        ("model.embed_tokens.base_layer.weight", 276, "adds 6 tokens to the model's 270"),
    ],
)
def test_lora_that_is_more_than_updates_says_how_to_merge_it(path, tmp_path, name, rows, found):
    arrays = low_rank(projections("q_proj", "v_proj", config=_config(path)))
    arrays[f"base_model.model.{name}"] = np.zeros((rows, 256), np.float32)
    directory = write_adapter(tmp_path / "whole", arrays)
    with pytest.raises(UnsupportedModelError, match=found) as raised:
        Llama(path, lora=directory)
    assert f"qllama convert CHECKPOINT --lora {directory}" in str(raised.value)


def test_lora_with_the_models_own_embedding_beside_its_updates_is_taken(path, tmp_path, pirate):
    arrays = low_rank(projections("q_proj", "v_proj", config=_config(path)))
    plain = logits(path, write_adapter(tmp_path / "a", arrays))
    own = {"base_model.model.model.embed_tokens.base_layer.weight": np.ones((270, 256), "f4")}
    np.testing.assert_array_equal(
        plain, logits(path, write_adapter(tmp_path / "b", {**arrays, **own}))
    )
    nothing = write_adapter(tmp_path / "c", own, target_modules=None)
    np.testing.assert_array_equal(logits(path), logits(path, nothing))


def _config(path):
    with QlmFile.open(path) as file:
        return file.config


@pytest.fixture(scope="module")
def real(convert_smollm2):
    return convert_smollm2("f32")


@pytest.fixture(scope="module")
def real_adapter(real, tmp_path_factory):
    """A rank-stabilized one of all linear layers, those of q with another alpha."""
    return adapter(
        tmp_path_factory.mktemp("real") / "adapter",
        _config(real),
        *EVERY,
        rank=16,
        size=0.02,
        use_rslora=True,
        alpha_pattern={"q_proj": 32},
    )


@pytest.fixture(scope="module")
def real_merged(smollm2_gguf, real_adapter, tmp_path_factory):
    path = tmp_path_factory.mktemp("merged") / "f32.qlm"
    convert(smollm2_gguf, path, type="f32", adapters=[(real_adapter, 1.0)])
    return path


def test_real_model_lora_is_the_merged_conversion(real, real_adapter, real_merged):
    with Llama(real, n_ctx=64) as llm, Llama(real_merged, n_ctx=64) as whole:
        tokens = llm.tokenize("A gentleman farmer walks to the market and buys a red hat.")
        plain = llm.logits(tokens)
        llm.lora = real_adapter
        found, expected = llm.logits(tokens), whole.logits(tokens)
        with QlmFile.open(real_merged) as file:
            other = reference.forward(file, tokens, quantize_activations=True)
        # Other orders of the same sums: as far apart as a model from its own reference.
        rounding = np.abs(expected - other).max()
        difference = np.abs(found - expected).max()
        print(f"differs by {difference:.1e}, from the reference by {rounding:.1e}")
        assert difference <= 2 * rounding
        assert np.abs(found - plain).max() > 100 * rounding
        question = [{"role": "user", "content": "Name a colour."}]
        how = {"temperature": 0, "max_tokens": 12}
        assert llm.chat(question, **how) == whole.chat(question, **how)
        llm.lora = None
        np.testing.assert_array_equal(llm.logits(tokens), plain)


def test_lora_is_seen_by_traces_and_under_hooks(path, pirate, poet):
    alone = {directory: logits(path, directory) for directory in (pirate, poet)}
    with Llama(path, lora=pirate) as llm:
        trace = llm.trace(PROMPT)
        np.testing.assert_array_equal(trace["logits"], alone[pirate])
        with llm.hooked({"**": lambda values, at: None}) as watched:
            llm.lora = poet  # the trace and the hooked model remain what they were
            np.testing.assert_array_equal(watched.logits(PROMPT), alone[pirate])
            watched.lora = poet
            np.testing.assert_array_equal(watched.logits(PROMPT), alone[poet])
        lens = trace.logit_lens(k=1, positions=range(len(PROMPT)))
        assert (lens.token_ids[-1, :, 0] == alone[pirate].argmax(axis=1)).all()
        np.testing.assert_array_equal(llm.trace(PROMPT)["logits"], alone[poet])


def divergence(found, expected):
    """Mean Kullback-Leibler divergence of two models' next tokens, in nats, from logits."""
    p, q = (
        x - np.log(np.exp(x).sum(axis=1, keepdims=True))
        for x in (y.astype(np.float64) for y in (expected, found))
    )
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def test_real_model_lora_on_quantized_weights_is_nearer_than_quantizing_the_merged_ones(
    smollm2_q4, smollm2_gguf, real_adapter, real_merged, tmp_path
):
    convert(smollm2_gguf, tmp_path / "q4.qlm", type="q4", adapters=[(real_adapter, 1.0)])
    text = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
    with Llama(real_merged) as llm:
        tokens = llm.tokenize(text)[:400]
        expected = llm.logits(tokens)
    beside = divergence(logits(smollm2_q4, real_adapter, tokens), expected)
    merged = divergence(logits(tmp_path / "q4.qlm", None, tokens), expected)
    without = divergence(logits(smollm2_q4, None, tokens), expected)
    print(f"beside {beside:.3f}, merged {merged:.3f}, without the adapter {without:.3f}")
    assert beside < merged < without
