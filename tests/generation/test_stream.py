from __future__ import annotations

import threading

import pytest
from fake_model import ASSISTANT, EOS, USER, ByteTokenizer, FakeEngine, token_ids

from qllama.errors import ContextLengthError
from qllama.generation.generator import Generator
from qllama.generation.lookup import PromptLookup
from qllama.generation.session import Session


class Model:
    """An engine with what is needed to start greedy answers of it."""

    def __init__(self, answers=(), tokenizer=None, **engine):
        self.engine = FakeEngine(dict(answers), **engine)
        self.session = Session(self.engine)
        self.lock = threading.Lock()
        self.generator = Generator(
            self.session, self.lock, tokenizer or ByteTokenizer(), PromptLookup()
        )

    def start(self, prompt, **options):
        return self.generator.start(token_ids(prompt), **{"temperature": 0} | options)

    def holds_what_the_session_thinks(self):
        held = self.session.held
        return held == self.engine.held[: len(held)]


def transcript(stream):
    return [(str(piece), piece.finish_reason) for piece in stream]


def noise(model, prompt, seed=3, max_tokens=12):
    """Start an answer that wanders: any wrong token in the KV cache changes it."""
    return model.start(prompt, temperature=1.0, top_k=0, seed=seed, max_tokens=max_tokens)


def test_stream_answer_is_passed_on_token_by_token():
    stream = Model({"Q": "Hey"}).start("Q")
    assert transcript(stream) == [("H", None), ("e", None), ("y", None), ("", "stop")]
    assert stream.token_ids == (*b"Hey", EOS)
    assert stream.finish_reason == "stop"
    assert list(stream) == []


def test_stream_pieces_carry_their_tokens_and_the_timings_so_far():
    pieces = list(Model({"Q": "Hey"}).start("Q"))
    assert [piece.token_ids for piece in pieces] == [(72,), (101,), (121,), (EOS,)]
    assert [piece.timings.completion_tokens for piece in pieces] == [1, 2, 3, 4]


def test_stream_completion_is_the_pieces_joined():
    answer = Model({"Q": "Hey"}).start("Q").completion()
    assert answer == "Hey"
    assert (answer.finish_reason, answer.token_ids) == ("stop", (*b"Hey", EOS))
    assert (answer.prompt_tokens, answer.completion_tokens) == (1, 4)


def test_stream_evaluates_each_token_once_and_never_the_last():
    model = Model({"Question": "Hey"})
    model.start("Question", draft_max=0).completion()
    assert model.engine.evaluated == [8, 1, 1, 1]
    assert model.session.held == [*b"QuestionHey"]


def test_stream_character_split_over_tokens_is_passed_on_whole():
    stream = Model({"Q": "é€😀"}).start("Q")
    pieces = list(stream)
    assert pieces == ["é", "€", "😀", ""]
    assert [len(piece.token_ids) for piece in pieces] == [2, 3, 4, 1]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_stream_character_cut_by_max_tokens_is_marked(n):
    answer = Model({"Q": "😀"}).start("Q", max_tokens=n).completion()
    assert (answer, answer.finish_reason) == ("\ufffd", "length")


def test_stream_character_cut_by_the_model_is_marked():
    assert Model({"Q": "a😀".encode()[:3]}).start("Q").completion() == "a\ufffd"


@pytest.mark.parametrize(
    ("stop", "pieces"),
    [
        ("END", [("a", None), (" ", None), ("", "stop")]),
        (["D", "END"], [("a", None), (" ", None), ("", "stop")]),
        (["xx", "N"], [("a", None), (" ", None), ("E", None), ("", "stop")]),
    ],
)
def test_stream_stop_string_split_over_tokens_is_never_shown(stop, pieces):
    assert transcript(Model({"Q": "a END b"}).start("Q", stop=stop)) == pieces


@pytest.mark.parametrize(
    ("answer", "max_tokens", "reason"), [("a EN", None, "stop"), ("a END", 4, "length")]
)
def test_stream_withheld_text_is_passed_on_when_no_stop_string_follows(answer, max_tokens, reason):
    found = Model({"Q": answer}).start("Q", stop="END", max_tokens=max_tokens).completion()
    assert (found, found.finish_reason) == ("a EN", reason)


def test_stream_stop_string_with_the_last_token_counts_as_stop():
    found = Model({"Q": "aEND"}).start("Q", stop="END", max_tokens=4).completion()
    assert (found, found.finish_reason) == ("a", "stop")


@pytest.mark.parametrize("option", [{"stop_token_ids": [USER]}, {"stop": ["x", "<|user|>"]}])
def test_stream_stop_token_ends_the_answer(option):
    found = Model({"Q": [*b"a", USER, *b"b"]}).start("Q", **option).completion()
    assert (found, found.finish_reason, found.token_ids) == ("a", "stop", (97, USER))


def test_stream_control_token_in_an_answer_has_no_text():
    assert Model({"Q": [*b"a", ASSISTANT, *b"b"]}).start("Q").completion() == "ab"


@pytest.mark.parametrize(("prompt", "text"), [("Q:", " A"), ([*b"Q:", ASSISTANT], "A")])
def test_stream_leading_space_is_kept_unless_the_tokenizer_added_it(prompt, text):
    model = Model({tuple(token_ids(prompt)): " A"}, ByteTokenizer(adds_space=True))
    assert model.start(prompt).completion() == text


@pytest.mark.parametrize(("n", "text"), [(1, "H"), (2, "He"), (3, "Hey")])
def test_stream_max_tokens_ends_the_answer(n, text):
    model = Model({"Q": "Hey"})
    found = model.start("Q", max_tokens=n).completion()
    assert (found, found.finish_reason, found.completion_tokens) == (text, "length", n)
    assert len(model.engine.evaluated) == n


def test_stream_max_tokens_zero_only_evaluates_the_prompt():
    model = Model({"Question": "Hey"})
    found = model.start("Question", max_tokens=0).completion()
    assert (found, found.finish_reason, found.completion_tokens) == ("", "length", 0)
    assert model.session.held == [*b"Question"]


@pytest.mark.parametrize("max_tokens", [None, -1, 100])
def test_stream_full_context_ends_the_answer(max_tokens):
    model = Model({"Q": "Hey you"}, n_ctx=5)
    found = model.start("Q", max_tokens=max_tokens).completion()
    assert (found, found.finish_reason) == ("Hey ", "length")


def test_stream_prompt_that_fills_the_context_leaves_no_room_for_an_answer():
    found = Model(n_ctx=3).start("abc").completion()
    assert (found, found.finish_reason) == ("", "length")


def test_stream_prompt_beyond_the_context_is_refused_with_both_numbers():
    with pytest.raises(ContextLengthError, match=r"4 tokens.* of 3: .*n_ctx"):
        Model(n_ctx=3).start("abcd")


@pytest.mark.parametrize(
    ("prompt", "option", "name"),
    [
        ("", {}, "prompt"),
        ("Q", {"max_tokens": -2}, "max_tokens"),
        ("Q", {"top_p": 2}, "top_p"),
        ("Q", {"stop": ""}, "stop"),
    ],
)
def test_stream_bad_option_is_refused_at_once(prompt, option, name):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Model().start(prompt, **option)


def test_stream_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match="temprature"):
        Model().start("Q", temprature=1.0)


def test_stream_next_turn_evaluates_only_new_tokens():
    model = Model({"Question": "Hey"})
    model.start("Question").completion()
    found = model.start("QuestionHey you", max_tokens=1).completion()
    assert found.timings.reused_tokens == 11
    assert found.timings.evaluated_tokens == 4
    assert model.engine.evaluated[-1] == 4


def test_stream_penalties_count_the_prompt():
    model = Model({"ab": "a"})
    assert model.start("ab", max_tokens=1).completion() == "a"
    assert model.start("ab", presence_penalty=99, max_tokens=1).completion() != "a"
    again = model.start("ab", presence_penalty=99, repeat_last_n=1, max_tokens=1)
    assert again.completion() == "a"


def test_stream_same_seed_gives_the_same_answer_and_another_does_not():
    answers = [noise(Model(), "Q", seed).completion() for seed in (3, 3, 4)]
    assert answers[0] == answers[1] != answers[2]
    assert answers[0].seed == 3


def test_stream_chosen_seed_is_reported_and_reproduces_the_answer():
    first = noise(Model(), "Q", None).completion()
    assert noise(Model(), "Q", first.seed).completion() == first


def test_stream_progress_is_reported_for_the_prompt_only():
    calls = []
    Model({"Question?": "Hey"}, n_batch=4).start(
        "Question?", on_progress=lambda done, total: calls.append((done, total))
    ).completion()
    assert calls == [(4, 9), (8, 9)]


def test_stream_two_that_take_turns_answer_as_if_alone():
    alone = [noise(Model(), prompt).completion() for prompt in ("one", "two, longer")]
    model = Model()
    streams = [noise(model, prompt) for prompt in ("one", "two, longer")]
    texts = ["", ""]
    while any(stream.finish_reason is None for stream in streams):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert texts == alone


def test_stream_abandoned_holds_no_lock_and_leaves_the_session_consistent():
    model = Model({"Q": "Hey"})
    for _ in model.start("Q"):
        break
    assert not model.lock.locked()
    assert model.holds_what_the_session_thinks()
    assert model.start("Q").completion() == "Hey"


@pytest.mark.parametrize("after", [0, 4, 8])
def test_stream_interrupted_prompt_leaves_the_session_consistent(after):
    model = Model({"A longer question": "Hey"}, n_batch=4)
    model.start("A lo", max_tokens=0).completion()
    model.engine.interrupt_after = after
    with pytest.raises(KeyboardInterrupt):
        model.start("A longer question").completion()
    assert not model.lock.locked()
    assert model.holds_what_the_session_thinks()
    assert len(model.session.held) == 4 + after
    assert model.start("A longer question").completion() == "Hey"


def test_stream_interrupted_answer_leaves_the_session_consistent_and_can_go_on():
    model = Model({"Q": "Hey"})
    stream = model.start("Q")
    assert next(stream) == "H"
    model.engine.interrupt_after = 0
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert model.session.held == [*b"Q"]
    assert "".join(stream) == "ey"


def test_stream_cancelled_between_pieces_ends_with_what_was_withheld():
    stream = Model({"Q": "aaba..."}).start("Q", stop="aab!")
    assert next(stream) == "aab"
    stream.cancel()
    assert transcript(stream) == [("a", "cancelled")]
    assert stream.finish_reason == "cancelled"


def test_stream_cancelled_in_the_prompt_stops_at_the_next_chunk():
    model = Model(n_batch=4)
    stream = model.start("A longer question", on_progress=lambda done, total: stream.cancel())
    assert transcript(stream) == [("", "cancelled")]
    assert model.engine.evaluated == [4]
    assert model.session.held == [*b"A lo"]


def test_stream_completions_of_two_threads_do_not_displace_each_other():
    model = Model()
    found = {}

    def answer(prompt):
        found[prompt] = noise(model, prompt).completion()

    threads = [threading.Thread(target=answer, args=(prompt,)) for prompt in ("one", "two, longer")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {prompt: noise(Model(), prompt).completion() for prompt in found}
    # No step had to evaluate more than its own token.
    assert sorted(model.engine.evaluated)[-2:] == [3, 11]
    assert sorted(model.engine.evaluated)[:-2] == [1] * 22
