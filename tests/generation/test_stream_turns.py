"""Who waits, who is cancelled, whose time is over: streams beside each other."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from fake_model import ByteTokenizer, FakeEngine, token_ids

from qllama.generation.generator import Generator
from qllama.generation.lookup import PromptLookup
from qllama.generation.session import Session

NOISE = {"temperature": 1.0, "top_k": 0, "max_tokens": 12}


class Model:
    def __init__(self, answers=(), **engine):
        self.engine = FakeEngine(dict(answers), **engine)
        self.session = Session(self.engine)
        self.lock = threading.Lock()
        self.generator = Generator(self.session, self.lock, ByteTokenizer(), PromptLookup())

    def start(self, prompt, **options):
        return self.generator.start(token_ids(prompt), **{"temperature": 0} | options)


@pytest.fixture
def clock(monkeypatch):
    """The loop's clock, which stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr("qllama.generation.interrupt.time.monotonic", lambda: now[0])
    return now


def test_stream_whose_time_is_over_ends_with_what_it_has(clock):
    stream = Model({"Q": "Hello"}).start("Q", timeout=5, stop="lox")
    assert [next(stream) for _ in range(2)] == ["H", "e"]
    clock[0] = 104.9
    assert next(stream) == "l"
    clock[0] = 105.0
    assert [(str(p), p.finish_reason) for p in stream] == [("l", "timeout")]
    assert stream.token_ids == tuple(b"Hell")


def test_stream_time_is_over_in_the_prompt_stops_between_layers(clock):
    model = Model(n_batch=4)

    def wait(done, total):
        clock[0] += 3

    answer = model.start("A longer question", timeout=5, on_progress=wait).completion()
    assert (answer, answer.finish_reason) == ("", "timeout")
    assert model.engine.evaluated == [8]


def test_stream_timeout_counts_the_wait_for_other_calls():
    model = Model({"Q": "Hello"})
    with model.lock:
        answer = model.start("Q", timeout=0.01).completion()
    assert (answer, answer.finish_reason) == ("", "timeout")
    assert model.engine.evaluated == []
    assert model.start("Q", timeout=1e9).completion() == "Hello"


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_stream_bad_timeout_is_refused(timeout):
    with pytest.raises(ValueError, match="timeout: expected"):
        Model().start("Q", timeout=timeout)


def test_stream_closed_gives_no_more_pieces():
    model = Model({"Q": "Hey"})
    with model.start("Q") as stream:
        assert next(stream) == "H"
    assert list(stream) == []
    assert stream.finish_reason == "cancelled"
    assert stream.completion().finish_reason == "cancelled"
    assert model.start("Q").completion() == "Hey"


def test_stream_closed_after_its_end_keeps_its_reason():
    stream = Model({"Q": "Hey"}).start("Q")
    stream.completion()
    stream.close()
    assert stream.finish_reason == "stop"


def test_generator_cancel_ends_every_answer_in_the_making_only():
    model = Model({"Q": "Hey", "R": "You"})
    started, waiting = model.start("Q"), model.start("R")
    next(started)
    model.generator.cancel()
    assert [stream.completion().finish_reason for stream in (started, waiting)] == ["cancelled"] * 2
    assert model.start("Q").completion() == "Hey"


def test_generator_keeps_no_answer_alive():
    model = Model()
    model.start("Q")
    gc.collect()
    assert len(model.generator._answers) == 0


def test_stream_awaited_is_the_answer():
    async def main():
        return await Model({"Q": "Hey"}).start("Q")

    answer = asyncio.run(main())
    assert (answer, answer.finish_reason) == ("Hey", "stop")


def test_stream_async_pieces_are_those_of_the_plain_stream():
    plain = [str(piece) for piece in Model().start("Q", seed=3, **NOISE)]

    async def main():
        return [str(piece) async for piece in Model().start("Q", seed=3, **NOISE)]

    assert asyncio.run(main()) == plain


def test_stream_async_steps_leave_the_event_loop_free():
    """The engine waits for something that only the event loop's thread does."""
    model = Model({"Q": "Hey"})
    ticked = threading.Event()
    evaluate = model.engine.evaluate

    def evaluate_after_a_tick(*arguments, **options):
        assert ticked.wait(60), "the event loop stood still"
        return evaluate(*arguments, **options)

    model.engine.evaluate = evaluate_after_a_tick

    async def main():
        answer = asyncio.ensure_future(asyncio.wait_for(model.start("Q"), 60))
        await asyncio.sleep(0)
        ticked.set()
        return await answer

    assert asyncio.run(main()) == "Hey"


def test_stream_async_many_at_once_answer_as_if_alone():
    prompts = [f"prompt {i}" for i in range(6)]
    alone = [Model().start(prompt, seed=5, **NOISE).completion() for prompt in prompts]

    async def streamed(model, prompt):
        return "".join([piece async for piece in model.start(prompt, seed=5, **NOISE)])

    async def main():
        model = Model()  # its engine fails when two threads are in it
        return await asyncio.gather(*(streamed(model, prompt) for prompt in prompts))

    assert asyncio.run(main()) == alone


def test_stream_async_task_cancelled_cancels_the_evaluation():
    model = Model(n_batch=4)
    in_prompt, cancelled = threading.Event(), threading.Event()

    def wait(done, total):
        in_prompt.set()
        assert cancelled.wait(60)

    stream = model.start("A longer question", on_progress=wait)

    async def main():
        task = asyncio.ensure_future(stream.__anext__())
        while not in_prompt.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()
        return await stream

    assert asyncio.run(main()).finish_reason == "cancelled"
    assert model.engine.evaluated == [4]


def test_stream_async_closing_ends_it():
    async def main():
        stream = Model({"Q": "Hey"}).start("Q")
        async for _ in stream:
            await stream.aclose()
        return stream

    assert asyncio.run(main()).finish_reason == "cancelled"
