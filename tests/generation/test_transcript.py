"""A chat's next prompt keeps the tokens that the answer was made of."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fake_model import ASSISTANT, BOS, EOS, LO, USER, MergingTokenizer

from qllama.generation.transcript import Transcript

QUESTION = "<|user|>Hi<|end|><|assistant|>"
QUESTION_IDS = [USER, *b"Hi", EOS, ASSISTANT]
NEXT = "<|end|><|user|>Bye<|end|><|assistant|>"
NEXT_IDS = [EOS, USER, *b"Bye", EOS, ASSISTANT]


@pytest.fixture
def transcript():
    return Transcript(MergingTokenizer())


def answered(transcript, ids, prompt=QUESTION):
    prompt_ids = transcript.encode(prompt)
    answer = SimpleNamespace(token_ids=tuple(ids))
    transcript.remember(prompt, prompt_ids, answer)
    return answer


@pytest.mark.parametrize("end", [[EOS], []], ids=["ended", "cut off"])
def test_transcript_answer_keeps_the_tokens_it_was_made_of(transcript, end):
    answered(transcript, [*b"Hello", *end])
    assert transcript.encode(f"{QUESTION}Hello{NEXT}") == [*QUESTION_IDS, *b"Hello", *NEXT_IDS]


def test_transcript_tokens_that_come_later_count(transcript):
    answer = answered(transcript, b"Hel")
    answer.token_ids = (*b"Hello",)
    assert transcript.encode(f"{QUESTION}Hello{NEXT}") == [*QUESTION_IDS, *b"Hello", *NEXT_IDS]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (b"Hello", "Cello"),
        (b"Hello END", "Hello"),
        (b"Hello", "Hello!"),
        (b"Hello", "Hello\n"),
        ([*b"Hel", USER, *b"lo"], "Hello"),
        ("Hello é".encode()[:-1], "Hello é"),
    ],
    ids=["edited", "withheld", "longer", "no safe boundary", "control token", "half a character"],
)
def test_transcript_text_that_is_not_the_answers_is_encoded_whole(transcript, ids, text):
    answered(transcript, ids)
    whole = [*QUESTION_IDS, *transcript.encode(text), *NEXT_IDS]
    assert LO in whole
    assert transcript.encode(f"{QUESTION}{text}{NEXT}") == whole


def test_transcript_control_token_spelled_in_letters_is_not_read_as_one(transcript):
    answered(transcript, [*b"Hello<|end|>"])
    expected = [*QUESTION_IDS, *b"Hello<|end|>", *NEXT_IDS]
    assert transcript.encode(f"{QUESTION}Hello<|end|>{NEXT}") == expected


def test_transcript_turn_that_is_asked_anew_keeps_the_answers_before(transcript):
    answered(transcript, b"Hello")
    answered(transcript, b"lo", f"{QUESTION}Hello{NEXT}")
    again = "<|end|><|user|>Well<|end|><|assistant|>"
    assert transcript.encode(f"{QUESTION}Hello{again}")[: len(QUESTION_IDS) + 5] == [
        *QUESTION_IDS,
        *b"Hello",
    ]
    assert transcript.encode(f"{QUESTION}Hello{NEXT}lo{NEXT}") == [
        *QUESTION_IDS,
        *b"Hello",
        *NEXT_IDS,
        *b"lo",
        *NEXT_IDS,
    ]


def test_transcript_bos_is_added_in_front_only():
    transcript = Transcript(MergingTokenizer(add_bos_token=True, add_eos_token=True))
    answered(transcript, b"Hello")
    expected = [BOS, *QUESTION_IDS, *b"Hello", *NEXT_IDS]
    assert transcript.encode(f"{QUESTION}Hello{NEXT}") == expected


def test_transcript_space_that_encoding_adds_is_no_text_of_the_answer():
    transcript = Transcript(MergingTokenizer(adds_space=True))
    answered(transcript, b" Hello")
    expected = [*QUESTION_IDS, *b" Hello", *NEXT_IDS]
    assert transcript.encode(f"{QUESTION}Hello{NEXT}") == expected


def test_transcript_same_answer_twice_has_the_tokens_of_the_last(transcript):
    answered(transcript, b"Hello")
    answered(transcript, [*b"Hel", LO])
    assert transcript.encode(f"{QUESTION}Hello{NEXT}") == [*QUESTION_IDS, *b"Hel", LO, *NEXT_IDS]
    answered(transcript, b"Hello")
    assert transcript.encode(f"{QUESTION}Hello{NEXT}") == [*QUESTION_IDS, *b"Hello", *NEXT_IDS]
