"""Traces and hooks of the real small model."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest

from qllama import Llama
from qllama.errors import ContextLengthError

PROMPT = "The capital of France is"
OTHER = "The capital of Italy is"


@pytest.fixture(scope="module")
def llm(smollm2_q4):
    with Llama(smollm2_q4, n_ctx=512) as llm:
        yield llm


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
def test_trace_that_only_reads_has_the_logits_to_the_bit(smollm2_q4, kv_type):
    text = "It was the best of times, it was the worst of times. " * 12
    with Llama(smollm2_q4, n_ctx=512, kv_type=kv_type, n_batch=50) as llm:
        trace = llm.trace(text)
        assert len(trace.token_ids) > 128
        np.testing.assert_array_equal(trace["logits"], llm.logits(trace.token_ids))
        assert list(trace) == list(llm.activations())


def test_trace_of_prompt_and_answer_is_what_generating_computed(llm):
    seen = {}

    def note(x, at):
        for position, row in zip(at.positions.tolist(), x, strict=True):
            seen[position] = row.copy()

    name = "layers.12.mlp.output"
    with llm.hooked({name: note}) as watched:
        answer = watched.generate(PROMPT, max_tokens=8, temperature=0)
    assert answer == llm.generate(PROMPT, max_tokens=8, temperature=0)
    trace = llm.trace([*llm.tokenize(PROMPT), *answer.token_ids], name)
    assert sorted(seen) == list(range(len(trace.tokens) - 1))
    np.testing.assert_array_equal(np.array([seen[p] for p in sorted(seen)]), trace[name][:-1])


def test_trace_residual_stream_is_the_sum_of_what_was_added(llm):
    trace = llm.trace(PROMPT)
    for i in (0, 17):
        layer = f"layers.{i}."
        middle = trace[layer + "input"] + trace[layer + "self_attn.output"]
        np.testing.assert_array_equal(middle, trace[layer + "post_attention_layernorm.input"])
        end = middle + trace[layer + "mlp.output"]
        np.testing.assert_array_equal(end, trace[layer + "output"])
        np.testing.assert_array_equal(trace[f"layers.{i + 1}.input"], trace[layer + "output"])


def test_trace_ablation_changes_what_the_model_says(llm):
    before = llm.trace(PROMPT, "logits")["logits"][-1]
    hooks = {"layers.*.self_attn.output": lambda x, at: 0 * x}
    after = llm.trace(PROMPT, "logits", hooks=hooks)["logits"][-1]
    assert llm.detokenize([int(before.argmax())]) == " Paris"
    assert llm.detokenize([int(after.argmax())]) != " Paris"


def test_trace_patching_a_clean_stream_into_a_corrupted_run_restores_the_logits(llm):
    clean = llm.trace(PROMPT, ["layers.*.output", "logits"])
    corrupted = llm.trace(OTHER, "logits")
    assert not np.array_equal(corrupted["logits"][-1], clean["logits"][-1])
    name = "layers.20.output"
    whole = llm.trace(OTHER, "logits", hooks={name: lambda x, at: clean[name]})
    np.testing.assert_array_equal(whole["logits"], clean["logits"])
    paris, rome = (llm.tokenize(city)[0] for city in (" Paris", " Rome"))

    def margin(trace):
        return float(trace["logits"][-1, paris] - trace["logits"][-1, rome])

    def patch(x, at):
        x[3] = clean[at.name][3]  # the country, the only token that differs

    early = llm.trace(OTHER, "logits", hooks={"layers.0.output": patch})
    assert margin(corrupted) < 0 < margin(early)


def test_hooked_model_leaves_the_other_as_it_was(llm):
    plain = llm.generate(PROMPT, max_tokens=6, temperature=0)
    held = llm.save_state()
    with llm.hooked({"layers.1?.mlp.output": lambda x, at: 0 * x}) as changed:
        assert "with hooks" in repr(changed)
        steered = changed.generate(PROMPT, max_tokens=6, temperature=0)
        assert changed.generate(PROMPT, max_tokens=6, temperature=0) == steered
    assert steered != plain
    assert llm.save_state() == held
    again = llm.generate(PROMPT, max_tokens=6, temperature=0)
    assert again == plain
    assert again.timings.reused_tokens > 0


def test_hooked_model_answers_scores_and_embeds_with_its_hooks(llm):
    with llm.hooked({"layers.15.output": lambda x, at: x * 1.5}) as changed:
        ids = llm.tokenize(PROMPT)
        expected = llm.trace(ids, hooks={"layers.15.output": lambda x, at: x * 1.5})
        np.testing.assert_array_equal(changed.logits(ids), expected["logits"])
        np.testing.assert_array_equal(changed.trace(ids)["logits"], expected["logits"])
        one, two = changed.generate(PROMPT, n=2, seed=3, max_tokens=5)
        assert one == changed.generate(PROMPT, seed=3, max_tokens=5)
        assert two == changed.generate(PROMPT, seed=4, max_tokens=5)
        assert not np.array_equal(changed.embed(PROMPT), llm.embed(PROMPT))
        assert changed.score(" Paris", PROMPT) != llm.score(" Paris", PROMPT)


def test_hooked_hooks_of_hooks_come_after_them(llm):
    def doubled(x, at):
        return x * 2

    def plus_one(x, at):
        return x + 1

    with llm.hooked({"layers.3.output": doubled}) as once:
        twice = once.hooked({"layers.3.output": plus_one})
        both = {"layers.3.output": lambda x, at: x * 2 + 1}
        ids = llm.tokenize(PROMPT)
        expected = llm.trace(ids, hooks=both)["logits"]
        np.testing.assert_array_equal(twice.logits(ids), expected)
    with pytest.raises(ValueError, match="closed"):
        twice.logits(ids)


def test_hook_that_raises_ends_the_call_and_leaves_both_models_usable(llm):
    fails = [True]

    def hook(x, at):
        if fails and at.layer == 9:
            raise ZeroDivisionError("in a hook")

    expected = llm.generate(PROMPT, max_tokens=4, temperature=0)
    with llm.hooked({"layers.*.output": hook}) as watched:
        with pytest.raises(ZeroDivisionError):
            watched.generate(PROMPT, max_tokens=4, temperature=0)
        with pytest.raises(ZeroDivisionError):
            llm.trace(PROMPT, "logits", hooks={"layers.9.output": hook})
        fails.clear()
        assert watched.generate(PROMPT, max_tokens=4, temperature=0) == expected
    assert llm.generate(PROMPT, max_tokens=4, temperature=0) == expected


def test_hooked_answers_can_be_cancelled_and_take_turns(llm):
    started = threading.Event()

    def slow(x, at):
        started.set()

    with llm.hooked({"layers.0.output": slow}) as watched:
        found = []
        thread = threading.Thread(
            target=lambda: found.append(watched.generate(PROMPT, max_tokens=400, temperature=1))
        )
        thread.start()
        assert started.wait(60)
        llm.cancel()
        thread.join()
    assert found[0].finish_reason in ("cancelled", "stop")


def test_hooked_ends_with_the_model_it_was_made_of(smollm2_q4):
    with Llama(smollm2_q4, n_ctx=64) as llm:
        watched = llm.hooked({"logits": lambda x, at: None})
        stream = watched.generate(PROMPT, stream=True)
        next(stream)
        with pytest.raises(TypeError, match="hooks cannot be pickled"):
            pickle.dumps(watched)
    with pytest.raises(ValueError, match="closed"):
        next(stream)
    watched.close()


def test_trace_bad_requests_are_refused(llm):
    with pytest.raises(ValueError, match=r"'layers.40.output' matches no activation of this"):
        llm.trace(PROMPT, "layers.40.output")
    with pytest.raises(ValueError, match="matches no activation"):
        llm.hooked({"layers.0.mpl.output": lambda x, at: None})
    with pytest.raises(ValueError, match=r"543 activations of 5 tokens take \d MiB, .*max_bytes"):
        llm.trace(PROMPT, max_bytes=2**20)
    with pytest.raises(ValueError, match="at least one token"):
        llm.trace([])
    with pytest.raises(ContextLengthError, match=r"600 tokens do not fit .* of 512"):
        llm.trace([1] * 600, "logits")


def test_trace_as_context_lets_go_at_its_end(llm):
    with llm.trace(PROMPT, "layers.0.**") as trace:
        kept = trace["layers.0.output"]
        assert "layers.0\n  input" in repr(trace)
        assert "<table>" in trace._repr_html_()
        with pytest.raises(KeyError, match=r"layers\.1\.output: not in this trace"):
            trace["layers.1.output"]
    assert kept.shape == (5, llm.config.hidden_size)
    with pytest.raises(ValueError, match="closed"):
        trace["layers.0.output"]
    assert repr(trace) == "<Trace, closed>"


def test_trace_stack_is_an_array_of_all_layers(llm):
    trace = llm.trace(PROMPT, "layers.*.self_attn.weights")
    stacked = trace.stack("layers.*.self_attn.weights")
    assert stacked.shape == (30, 9, 5, 5)
    np.testing.assert_array_equal(stacked[7], trace["layers.7.self_attn.weights"])
    mixed = llm.trace(PROMPT, ["norm.output", "logits"])
    with pytest.raises(ValueError, match=r"'\*\*': expected .* of norm\.output and .* of logits"):
        mixed.stack("**")


def test_logit_lens_ends_with_what_the_model_says(llm):
    trace = llm.trace(PROMPT, ["embed_tokens.output", "layers.*.output", "logits"])
    lens = trace.logit_lens(k=3)
    assert lens.names == ("embed_tokens.output", *(f"layers.{i}.output" for i in range(30)))
    logits = trace["logits"][-1].astype(np.float64)
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-logits)[:3]
    assert lens.token_ids[-1, 0].tolist() == best.tolist()
    np.testing.assert_array_equal(lens.probabilities[-1, 0], chances[best].astype(np.float32))
    assert lens.tokens[-1][0][0] == " Paris"
    assert repr(lens).splitlines()[0].startswith("after ' is'")
    assert "<td>&#x27; Paris&#x27; 0." in lens._repr_html_()
    grid = trace.logit_lens(k=1, positions=range(5))
    assert grid.token_ids.shape == (31, 5, 1)
    assert repr(grid).splitlines()[0].split() == [
        "'The'",
        "'",
        "capital'",
        "'",
        "of'",
        "'",
        "France'",
        "'",
        "is'",
    ]
    with pytest.raises(IndexError):
        trace.logit_lens(positions=5)
    with pytest.raises(ValueError, match="trace with names"):
        llm.trace(PROMPT, "logits").logit_lens()
