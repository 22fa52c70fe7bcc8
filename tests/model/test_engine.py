"""What the engine refuses and says, and that an interruption leaves it usable."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import threading

import numpy as np
import pytest
from tiny_model import config, random_tensors, write_model

from qllama.errors import (
    BadTensorError,
    ContextLengthError,
    OutOfMemoryError,
)
from qllama.format import QlmFile
from qllama.kernels.cores import default_n_threads
from qllama.model.arena import Arena
from qllama.model.engine import Engine
from qllama.model.kv_cache import KvCache

VOCAB = 48
N_CTX = 64


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = config()
    return write_model(
        tmp_path_factory.mktemp("model") / "tiny.qlm", made, random_tensors(made), "q8_0"
    )


@pytest.fixture(scope="module")
def file(path):
    with QlmFile.open(path) as file:
        yield file


@pytest.fixture
def engine(file):
    engine = Engine(file, n_ctx=N_CTX, n_threads=1, n_batch=8, n_slots=2)
    yield engine
    engine.close()


def exactly(text):
    return f"^{re.escape(text)}$"


@pytest.mark.parametrize("token", [-1, VOCAB, 2**31 - 1, -(2**31), 2**31, 2**62, -(2**80)])
def test_engine_token_out_of_range_is_named(engine, token):
    with pytest.raises(ValueError, match=exactly(f"token: expected 0 to 47, found {token}")):
        engine.evaluate([1, 2, token, 3], position=0)


@pytest.mark.parametrize("tokens", [[1.5], ["1"], [[1, 2]], np.ones(3), np.array([True])])
def test_engine_tokens_that_are_no_integers_are_refused(engine, tokens):
    with pytest.raises(ValueError, match="token: expected integers, found"):
        engine.evaluate(tokens, position=0)


@pytest.mark.parametrize("slot", [-1, 2])
def test_engine_slot_out_of_range_is_named(engine, slot):
    with pytest.raises(ValueError, match=exactly(f"slot: expected 0 to 1, found {slot}")):
        engine.evaluate([1], position=0, slot=slot)


def test_engine_negative_position_is_named(engine):
    with pytest.raises(ValueError, match=exactly("position: expected 0 to 63, found -1")):
        engine.evaluate([1, 2], position=-1)


@pytest.mark.parametrize(
    ("n_tokens", "position"), [(1, N_CTX), (5, 60), (N_CTX + 1, 0), (1, 2**31), (1, 2**70)]
)
def test_engine_position_past_the_context_is_refused_before_anything_runs(
    engine, n_tokens, position
):
    last, told = position + n_tokens - 1, []
    message = f"position {last} does not fit the context of 64 tokens; shorten"
    with pytest.raises(ContextLengthError, match=message):
        engine.evaluate([1] * n_tokens, position=position, on_progress=lambda *_: told.append(1))
    assert not told


def test_engine_no_tokens_are_refused(engine):
    with pytest.raises(ValueError, match="tokens: expected at least one"):
        engine.evaluate([], position=0)


def test_engine_batch_larger_than_its_buffers_is_refused(engine):
    arrays = (np.ones(9, np.int32), np.arange(9, dtype=np.int32), np.zeros(9, np.int32))
    with pytest.raises(ValueError, match="batch: expected 1 to 8 tokens, found 9"):
        engine.forward(*arrays, [8])


@pytest.mark.parametrize("output", [-1, 2, 2**40])
def test_engine_output_that_is_no_token_of_the_batch_is_named(engine, output):
    arrays = (np.ones(2, np.int32), np.arange(2, dtype=np.int32), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match=exactly(f"output: expected 0 to 1, found {output}")):
        engine.forward(*arrays, [0, output])


@pytest.mark.parametrize(
    ("positions", "slots", "found"),
    [
        ([5, 4], [0, 0], "4 after 5 in slot 0"),
        ([5, 5], [0, 0], "5 after 5 in slot 0"),
        ([3, 4, 9, 8], [0, 0, 1, 1], "8 after 9 in slot 1"),
        ([5, 6, 7], [0, 1, 0], "other slots between those of one"),
    ],
)
def test_engine_batch_out_of_order_is_refused(engine, positions, slots, found):
    arrays = (np.ones(len(slots)), np.array(positions), np.array(slots))
    message = "batch: expected the tokens of one slot together, in ascending positions; found "
    with pytest.raises(ValueError, match=exactly(message + found)):
        engine.forward(*(array.astype(np.int32) for array in arrays), [0])


def test_engine_batch_may_go_back_from_one_slot_to_the_next(engine):
    positions, slots = np.array([7, 8, 0, 1]), np.array([1, 1, 0, 0])
    arrays = (np.ones(4), positions, slots)
    assert np.isfinite(engine.forward(*(a.astype(np.int32) for a in arrays), [3])).all()


@pytest.mark.parametrize("lengths", [(2, 3, 3, 1), (3, 2, 3, 1), (3, 3, 4, 1), (3, 3, 3, 9)])
def test_engine_batch_of_uneven_arrays_is_refused(engine, lengths):
    n_tokens, n_positions, n_slots, n_outputs = lengths
    arrays = (np.zeros(n, np.int32) for n in (n_tokens, n_positions, n_slots))
    with pytest.raises(ValueError, match=f"batch of {n_tokens} tokens: found {n_positions} pos"):
        engine.forward(*arrays, [0] * n_outputs)


def test_engine_refusal_leaves_what_was_evaluated(engine):
    text = list(range(20))
    expected = engine.evaluate(text, position=0, all_logits=True)
    engine.evaluate(text[:12], position=0)
    for bad in ([VOCAB], [1] * 100):
        with pytest.raises((ValueError, ContextLengthError)):
            engine.evaluate(bad, position=12)
    logits = engine.evaluate(text[12:], position=12, all_logits=True)
    np.testing.assert_array_equal(logits, expected[12:])


@pytest.mark.parametrize("n_ctx", [-1, 641, 10**12])
def test_engine_context_past_the_models_limit_is_refused(file, n_ctx):
    with pytest.raises(ContextLengthError, match=rf"n_ctx: expected 0 .* to 640, found {n_ctx}"):
        Engine(file, n_ctx=n_ctx)


@pytest.mark.parametrize(("n_ctx", "expected"), [(0, 640), (1, 1), (640, 640)])
def test_engine_context_of_zero_is_the_models_own(file, n_ctx, expected):
    engine = Engine(file, n_ctx=n_ctx, n_threads=1)
    assert engine.n_ctx == expected
    assert np.isfinite(engine.evaluate([1], position=expected - 1)).all()
    engine.close()


def test_engine_cache_past_all_memory_says_its_size():
    made = config(max_position_embeddings=2**31 - 1, num_hidden_layers=2**20)
    with pytest.raises(ContextLengthError, match=r"takes \d+ MiB, .*choose a smaller n_ctx"):
        KvCache(made, 2**31 - 1, 1)


@pytest.mark.parametrize("name", ["n_threads", "n_slots", "n_batch"])
@pytest.mark.parametrize("value", [0, -3])
def test_engine_counts_below_one_are_refused(file, name, value):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, found {value}"):
        Engine(file, n_ctx=16, **{name: value})


def test_engine_batch_beyond_what_its_slots_hold_takes_no_memory(file):
    engine = Engine(file, n_ctx=16, n_threads=1, n_slots=2, n_batch=10**9)
    assert engine.n_batch == 32
    engine.close()


def test_arena_past_all_memory_says_its_size():
    arena = Arena()
    arena.reserve("qkv", 2**50)
    expected = r"take 1073741824 MiB, .*choose a smaller n_batch"
    with pytest.raises(OutOfMemoryError, match=expected):
        arena.allocate()


def test_engine_threads_beyond_reason_are_refused(file):
    with pytest.raises(ValueError, match="n_threads: expected at most 1024, found 1025"):
        Engine(file, n_ctx=16, n_threads=1025)


def test_engine_default_threads_are_the_machines_cores(file):
    engine = Engine(file, n_ctx=16)
    assert engine.n_threads == default_n_threads()
    engine.close()


MATRIX, VECTOR = "model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"
Q_NORM = "model.layers.0.self_attn.q_norm.weight"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (MATRIX, None, "is missing"),
        (VECTOR, None, "is missing"),
        ("lm_head.weight", None, "is missing"),
        (MATRIX, (96, 65), r"expected shape \(96, 64\), found \(96, 65\)"),
        (MATRIX, (95, 64), r"expected shape \(96, 64\), found \(95, 64\)"),
        (VECTOR, (63,), r"expected shape \(64,\), found \(63,\)"),
        (VECTOR, (1, 64), r"expected shape \(64,\), found \(1, 64\)"),
        (Q_NORM, (16,), "is not one that this model uses"),
        ("model.rope_divisors", (8,), "is not one that this model uses"),
        ("model.layers.2.mlp.up_proj.weight", (96, 64), "is not one that this model uses"),
    ],
)
def test_engine_tensors_that_do_not_fit_the_config_are_named(tmp_path, name, shape, message):
    made = config()
    tensors = random_tensors(made)
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = np.ones(shape, np.float32)
    path = write_model(tmp_path / "tiny.qlm", made, tensors)
    expected = rf"^{re.escape(str(path))}: tensor {re.escape(name)}:? {message}; convert"
    with QlmFile.open(path) as file, pytest.raises(BadTensorError, match=expected):
        Engine(file, n_ctx=16)


class Stop(Exception):
    """Raised by a callback to leave."""


def test_engine_progress_is_told_between_chunks(engine):
    told = []
    engine.evaluate([1] * 20, position=0, on_progress=lambda *seen: told.append(seen))
    assert told == [(8, 20), (16, 20)]


def test_engine_progress_that_raises_leaves_earlier_positions_valid(engine):
    text = [(7 * i) % VOCAB for i in range(30)]
    expected = engine.evaluate(text, position=0, all_logits=True)
    engine.evaluate([5] * 30, position=0)

    def stop(done, total):
        if done == 16:
            raise Stop

    with pytest.raises(Stop):
        engine.evaluate(text, position=0, on_progress=stop)
    logits = engine.evaluate(text[16:], position=16, all_logits=True)
    np.testing.assert_array_equal(logits, expected[16:])


@pytest.fixture
def alarm_is_ctrl_c():
    """An interval timer's signal raises KeyboardInterrupt."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_engine_ctrl_c_in_a_step_leaves_earlier_positions_valid(file, alarm_is_ctrl_c):
    engine = Engine(file, n_threads=2, n_batch=600)
    text = [(5 * i) % VOCAB for i in range(40)]
    expected = engine.evaluate(text, position=0, all_logits=True)
    interrupted = 0
    for microseconds in range(200, 6000, 400):
        try:
            signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
            engine.evaluate([1] * 600, position=20)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        logits = engine.evaluate(text[20:], position=20, all_logits=True)
        np.testing.assert_array_equal(logits, expected[20:])
    engine.close()
    assert interrupted > 0


def test_engine_compilation_is_told_kernel_by_kernel(file):
    told = []
    engine = Engine(file, n_ctx=16, n_threads=1, on_compile=lambda *seen: told.append(seen))
    engine.close()
    names, done, totals = zip(*told, strict=True)
    assert names == ("q8_0 matrix product", "decoder", "sampling", "")
    assert done == (0, 1, 2, 3)
    assert set(totals) == {3}


def test_engine_unknown_cache_type_is_refused(file):
    with pytest.raises(ValueError, match=exactly("kv_type: expected one of f16, q8, found 'q4'")):
        Engine(file, n_ctx=16, n_threads=1, kv_type="q4")


def test_engine_cache_of_q8_takes_its_kernel_along(tmp_path):
    made = config(num_hidden_layers=1)
    told = []
    with QlmFile.open(write_model(tmp_path / "m.qlm", made, random_tensors(made), "q4")) as file:
        Engine(
            file, n_ctx=16, n_threads=1, kv_type="q8", on_compile=lambda *seen: told.append(seen[0])
        ).close()
    assert told == ["q8_0 matrix product", "q4 matrix product", "decoder", "sampling", ""]


def test_engine_logits_stay_when_the_engine_goes_on(engine):
    first = engine.evaluate([1, 2, 3], position=0)
    kept = first.copy()
    engine.evaluate([4, 5, 6], position=0)
    np.testing.assert_array_equal(first, kept)


def test_engine_several_in_several_threads_compute_at_once(file):
    text = list(range(40))

    def work(results):
        engine = Engine(file, n_ctx=N_CTX, n_threads=2, n_batch=16)
        results.extend(engine.evaluate(text, position=0)[0] for _ in range(5))
        engine.close()

    results = []
    threads = [threading.Thread(target=work, args=(results,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 15
    for logits in results:
        np.testing.assert_array_equal(logits, results[0])


def test_engine_dropped_ends_its_threads(file):
    before = set(threading.enumerate())
    engine = Engine(file, n_ctx=16, n_threads=3)
    engine.evaluate([1], position=0)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    del engine
    gc.collect()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_engine_forked_in_the_middle_of_a_step_computes_right_in_the_child(file):
    engine = Engine(file, n_ctx=640, n_threads=1)
    text = [i % VOCAB for i in range(600)]
    engine.evaluate(text, position=0)
    expected = engine.evaluate([7], position=600)
    # What another thread's fork leaves: a part of the chunks of split attention has arrived.
    n_heads = engine.config.num_key_value_heads
    arrivals = ctypes.c_int64 * n_heads
    arrivals.from_address(int(engine._buffers.model[0]["arrivals"]))[:] = [1] * n_heads
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if np.array_equal(engine.evaluate([7], position=600), expected) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    # Here nothing was forked: that the logits are wrong proves that attention was split.
    assert not np.array_equal(engine.evaluate([7], position=600), expected)
    engine.close()
