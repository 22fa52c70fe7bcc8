"""Guessed tokens in the loop, with an engine that notices every wrong token in its cache."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from fake_model import EOS, VOCAB_SIZE, ByteTokenizer, FakeEngine, token_ids

from qllama.generation.expectation import StepCosts
from qllama.generation.generator import Generator
from qllama.generation.lookup import Guess
from qllama.generation.session import Session

RHYME = "row, row, row your boat"


class Prophet:
    """Guesses from a text that it is told, sometimes wrongly."""

    chances = (0.99,)
    seconds = 0.0

    def __init__(self, text, wrong=()):
        self.text = token_ids(text)
        self.wrong = wrong

    def guesses(self, tokens, check):
        for place in range(tokens.size, len(self.text)):
            yield Guess(self.text[place] ^ (place in self.wrong), 0)


class Model:
    def __init__(self, guesser, answers=(), **engine):
        self.engine = FakeEngine(dict(answers), **{"n_ctx": 128, "n_batch": 32} | engine)
        self.session = Session(self.engine)
        self.lock = threading.Lock()
        self.generator = Generator(self.session, self.lock, ByteTokenizer(), guesser)

    def start(self, prompt, **options):
        return self.generator.start(token_ids(prompt), **{"temperature": 0} | options)


@pytest.fixture(autouse=True)
def constant_costs(monkeypatch):
    """Guesses add half of what is usual to a step, whatever the clock says."""
    monkeypatch.setattr(StepCosts, "measured", lambda self, n_guesses, seconds: None)
    monkeypatch.setattr(StepCosts, "__init__", lambda self: self.__dict__.update(FIXED))


FIXED = {"factor": 0.5, "seconds": 1.0}


def test_speculation_right_guesses_take_one_step():
    model = Model(Prophet("Q" + RHYME), {"Q": RHYME})
    stream = model.start("Q")
    pieces = list(stream)
    assert "".join(pieces) == RHYME
    # The prompt, 1 + 15 tokens, and what is left of them and EOS.
    assert model.engine.evaluated == [1, 16, 7]
    assert (stream.timings.guessed_tokens, stream.timings.accepted_tokens) == (21, 21)
    assert stream.timings.acceptance == 1.0


def test_speculation_pieces_come_token_by_token_as_in_plain_decoding():
    pieces = list(Model(Prophet("Q" + RHYME), {"Q": RHYME}).start("Q"))
    assert [piece.token_ids for piece in pieces] == [(t,) for t in [*RHYME.encode(), EOS]]


def test_speculation_wrong_guess_is_thrown_away_with_those_after_it():
    model = Model(Prophet("Q" + RHYME, wrong=[6]), {"Q": RHYME})
    stream = model.start("Q")
    assert "".join(stream) == RHYME
    assert model.session.held[: 1 + len(RHYME)] == [*b"Q", *RHYME.encode()]
    assert stream.timings.accepted_tokens < stream.timings.guessed_tokens


SAMPLED = [
    {"temperature": 0, "seed": 2},
    {"temperature": 1.0, "top_k": 0, "seed": 3},
    {"temperature": 0.7, "repeat_penalty": 1.5, "frequency_penalty": 0.5, "seed": 4},
    {"temperature": 0.9, "xtc_probability": 0.5, "xtc_threshold": 0.01, "seed": 5},
    {"temperature": 0.9, "mirostat": 2, "seed": 6},
    {"temperature": 0.9, "dry_multiplier": 1.0, "logprobs": 3, "seed": 7},
]


@pytest.mark.parametrize("options", SAMPLED, ids=str)
@pytest.mark.parametrize("wrong", [(), (9,), (3, 11, 12), range(40)], ids=str)
def test_speculation_answer_is_that_of_plain_decoding(options, wrong):
    how = {**options, "max_tokens": 30}
    plain = Model(Prophet("")).start("Once", draft_max=0, **how).completion()
    model = Model(Prophet([*b"Once", *plain.token_ids], wrong))
    answer = model.start("Once", **how).completion()
    assert (answer, answer.token_ids) == (plain, plain.token_ids)
    assert (answer.finish_reason, answer.seed) == (plain.finish_reason, plain.seed)
    assert answer.logprobs == plain.logprobs
    assert answer.timings.guessed_tokens > 0
    if not wrong:
        assert len(model.engine.evaluated) < 10


def test_speculation_processor_sees_each_token_once_and_in_order():
    seen = []

    def listening(tokens, logits):
        seen.append(tokens.tolist())
        return logits

    model = Model(Prophet("Q" + RHYME, wrong=[5, 9]), {"Q": RHYME})
    model.start("Q", logits_processors=[listening]).completion()
    text = [*b"Q", *RHYME.encode()]
    assert seen == [text[: 1 + i] for i in range(len(RHYME) + 1)]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_speculation_evaluates_nothing_that_has_no_place_in_the_answer(n):
    model = Model(Prophet("Q" + RHYME), {"Q": RHYME})
    answer = model.start("Q", max_tokens=n).completion()
    assert (answer, answer.finish_reason) == (RHYME[:n], "length")
    assert sum(model.engine.evaluated) == n


def test_speculation_fills_the_context_window_to_its_end():
    model = Model(Prophet("Q" + RHYME), {"Q": RHYME}, n_ctx=12)
    answer = model.start("Q").completion()
    assert (answer, answer.finish_reason) == (RHYME[:11], "length")


def test_speculation_stop_string_among_the_guesses_ends_the_answer():
    answer = Model(Prophet("Q" + RHYME), {"Q": RHYME}).start("Q", stop="your").completion()
    assert (answer, answer.finish_reason) == ("row, row, row ", "stop")


def test_speculation_cancelled_answer_ends_before_its_guesses_are_used_up():
    stream = Model(Prophet("Q" + RHYME), {"Q": RHYME}).start("Q")
    pieces = [next(stream) for _ in range(3)]
    stream.cancel()
    assert "".join([*pieces, *stream]) == RHYME[:3]
    assert stream.finish_reason == "cancelled"


def test_speculation_interrupted_step_leaves_the_session_consistent_and_can_go_on():
    model = Model(Prophet("Q" + RHYME), {"Q": RHYME})
    stream = model.start("Q")
    assert next(stream) == "r"
    model.engine.interrupt_after = 0
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert model.session.held == [*b"Q"]
    assert "".join(stream) == RHYME[1:]


def test_speculation_two_streams_in_turns_do_not_disturb_each_other():
    model = Model(Prophet("Q" + RHYME, wrong=[7]), {"Q": RHYME, "P": RHYME[::-1]})
    first, second = model.start("Q"), model.start("P")
    texts = ["", ""]
    for pieces in zip(first, second, strict=True):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert texts == [RHYME, RHYME[::-1]]


def test_speculation_session_that_others_displaced_is_brought_back_with_one_row_of_logits():
    model = Model(Prophet("Q" + RHYME, wrong=range(4, 40)), {"Q": RHYME})
    rows = []
    evaluate = model.engine.evaluate

    def counted(tokens, **how):
        logits = evaluate(tokens, **how)
        rows.append((len(tokens), len(logits)))
        return logits

    model.engine.evaluate = counted
    stream = model.start("Q")
    begun = "".join(next(stream) for _ in range(6))
    model.start("else", max_tokens=1).completion()
    rows.clear()
    assert begun + "".join(stream) == RHYME
    assert rows[0] == (7, 1)


def test_speculation_rejected_guesses_displace_nothing_that_is_worth_saving():
    model = Model(Prophet("Q" + RHYME, wrong=range(40)), {"Q": RHYME})
    model.session = Session(model.engine, cache_bytes=10**6)
    model.engine.read_cache = None  # would be called to save
    model.generator = Generator(
        model.session, model.lock, ByteTokenizer(), Prophet("Q" + RHYME, wrong=range(40))
    )
    assert model.start("Q").completion() == RHYME


def test_speculation_negative_number_of_guesses_is_refused():
    with pytest.raises(ValueError, match="draft_max: expected an integer >= 0, found -1"):
        Model(Prophet("")).start("Q", draft_max=-1)


def test_speculation_constraint_of_ones_own_holds_in_every_row():
    def no_vowels(tokens, logits):
        changed = logits.copy()
        changed[[*b"aeiou"]] = -np.inf
        return changed

    assert VOCAB_SIZE > 256
    how = {"temperature": 0, "max_tokens": 30, "logits_processors": [no_vowels]}
    plain = Model(Prophet("")).start("Q", draft_max=0, **how).completion()
    answer = Model(Prophet([*b"Q", *plain.token_ids])).start("Q", **how).completion()
    assert answer.token_ids == plain.token_ids
    assert answer.timings.accepted_tokens > 0
