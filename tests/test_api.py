from __future__ import annotations

import itertools
import threading
import types

import numpy as np
import pytest
from fake_model import (
    ASSISTANT,
    BOS,
    CHAT_TEMPLATE,
    EOS,
    LO,
    USER,
    VOCAB_SIZE,
    ByteTokenizer,
    FakeEngine,
    MergingTokenizer,
    token_ids,
)

import qllama
from qllama import api
from qllama.api import model as opening
from qllama.errors import ContextLengthError, TokenizerError

QUESTION = [{"role": "user", "content": "Hi"}]
RENDERED = [USER, *b"Hi", EOS, ASSISTANT]


class FakeFile:
    """What `Llama` needs of an open `.qlm` file."""

    tokenizer = tokenizer_blob = None
    closed = False

    def close(self):
        self.closed = True


@pytest.fixture
def load(monkeypatch):
    """Return a function that opens a `Llama` on a fake engine."""

    def load(answers=(), *, tokenizer=None, n_ctx=64, **options):
        file = FakeFile()
        engines = []

        def open_engine(opened, *, n_ctx, n_threads, n_batch, kv_type, on_compile):
            assert opened is file
            engine = FakeEngine(dict(answers), n_ctx=n_ctx)
            engine.config = types.SimpleNamespace(vocab_size=VOCAB_SIZE)
            engine.n_threads = n_threads or 2
            engine.kv_type = kv_type
            engine.n_closed = 0
            engine.close = lambda: setattr(engine, "n_closed", engine.n_closed + 1)
            for stage in range(4):
                on_compile(f"kernel {stage}", stage, 3)
            engines.append(engine)
            return engine

        chosen = tokenizer or ByteTokenizer(chat_template=CHAT_TEMPLATE)

        def open_file(path, *, use_mmap, on_progress):
            file.is_mapped = use_mmap
            if on_progress is not None:
                on_progress(1, 2)
            return file

        monkeypatch.setattr(opening.QlmFile, "open", open_file)
        monkeypatch.setattr(opening, "load_tokenizer", lambda config, blob: chosen)
        monkeypatch.setattr(opening, "Engine", open_engine)
        llm = qllama.Llama("model.qlm", n_ctx=n_ctx, **options)
        llm.file, llm.engine = file, engines[0]
        return llm

    return load


def test_package_offers_llama_and_its_version():
    assert qllama.Llama is api.Llama
    assert qllama.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'Lama'"):
        _ = qllama.Lama


def test_generate_returns_text_with_its_story(load):
    answer = load({"Q": "Hey"}).generate("Q", temperature=0)
    assert answer == "Hey"
    assert isinstance(answer, str)
    assert answer.finish_reason == "stop"
    assert (answer.prompt_tokens, answer.completion_tokens) == (1, 4)
    assert answer.timings.load_seconds > 0


def test_generate_stream_joined_is_the_plain_answer(load):
    options = {"temperature": 1.5, "top_k": 0, "seed": 8, "max_tokens": 20}
    stream = load().generate("Q", stream=True, **options)
    assert "".join(stream) == load().generate("Q", **options)
    assert stream.seed == 8


def test_generate_prompt_of_token_ids_is_taken_as_it_is(load):
    llm = load({(EOS, 72): "i"}, tokenizer=ByteTokenizer(add_bos_token=True))
    assert llm.generate(np.array([EOS, 72]), temperature=0) == "i"


def test_generate_prompt_text_may_spell_control_tokens(load):
    assert load({(USER, *b"Q"): "A"}).generate("<|user|>Q", temperature=0) == "A"


@pytest.mark.parametrize("prompt", ["Q", "<s>Q"])
def test_generate_bos_is_added_once(load, prompt):
    llm = load({(BOS, *b"Q"): "A"}, tokenizer=ByteTokenizer(add_bos_token=True))
    answer = llm.generate(prompt, temperature=0)
    assert (answer, answer.prompt_tokens) == ("A", 2)


@pytest.mark.parametrize(("prompt", "ids"), [("Q", [*b"Q"]), ("Q<|end|>", [*b"Q", EOS])])
def test_generate_prompt_is_taken_without_an_eos_of_the_tokenizers_own(load, prompt, ids):
    llm = load({tuple(ids): "A"}, tokenizer=ByteTokenizer(add_eos_token=True))
    assert llm.generate(prompt, temperature=0) == "A"


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_token_ids_outside_the_vocabulary_are_refused(load, token):
    llm = load()
    for call in (llm.generate, llm.logits):
        with pytest.raises(ValueError, match=rf"0\.\.259, found {token}"):
            call([1, token])


def test_generate_unknown_option_is_refused_by_name(load):
    with pytest.raises(TypeError, match="temprature"):
        load().generate("Q", temprature=1)


def test_generate_prompt_beyond_the_context_is_refused(load):
    with pytest.raises(ContextLengthError, match=r"5 tokens.* of 4"):
        load(n_ctx=4).generate("12345")


def test_chat_uses_the_template_of_the_model(load):
    llm = load({tuple(RENDERED): "Hello"})
    assert llm.chat(QUESTION, temperature=0) == "Hello"
    assert "".join(llm.chat(QUESTION, stream=True, temperature=0)) == "Hello"


def test_tokenize_chat_gives_what_chat_evaluates(load):
    llm = load()
    ids = llm.tokenize_chat(QUESTION)
    assert ids == RENDERED
    assert llm.chat(QUESTION, max_tokens=0).prompt_tokens == len(ids)


def test_chat_template_that_writes_bos_never_leads_to_two(load):
    tokenizer = ByteTokenizer(add_bos_token=True, chat_template="{{ bos_token }}" + CHAT_TEMPLATE)
    llm = load({(BOS, *RENDERED): "Hello"}, tokenizer=tokenizer)
    assert llm.chat(QUESTION, temperature=0) == "Hello"


def test_chat_second_turn_evaluates_only_its_new_tokens(load):
    turn = [*RENDERED, *b"Hello", EOS, USER, *b"Bye", EOS, ASSISTANT]
    llm = load({tuple(RENDERED): "Hello", tuple(turn): "See you"})
    first = llm.chat(QUESTION, temperature=0)
    second = llm.chat(
        [
            *QUESTION,
            {"role": "assistant", "content": first},
            {"role": "user", "content": "Bye"},
        ],
        temperature=0,
    )
    assert second == "See you"
    assert second.timings.reused_tokens == len(RENDERED) + len("Hello")
    assert second.timings.evaluated_tokens == len([EOS, USER, *b"Bye", EOS, ASSISTANT])


def test_chat_second_turn_keeps_the_tokens_that_the_answer_was_made_of(load):
    turn = [*RENDERED, *b"Hello", EOS, USER, *b"Bye", EOS, ASSISTANT]
    llm = load(
        {tuple(RENDERED): "Hello", tuple(turn): "See you"},
        tokenizer=MergingTokenizer(chat_template=CHAT_TEMPLATE),
    )
    conversation = [*QUESTION]
    for question, reused in (("Bye", len(RENDERED) + 5), ("!", len(turn) + 7)):
        answer = "".join(llm.chat(conversation, stream=True, temperature=0, max_tokens=9))
        conversation += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": question},
        ]
        llm.engine.evaluated.clear()
        llm.chat(conversation, temperature=0, max_tokens=0)
        new = [EOS, USER, *question.encode(), EOS, ASSISTANT]
        assert llm.engine.evaluated == [len(new)]
        assert len(llm.engine.held) == reused + len(new)


def test_chat_answer_cut_by_a_stop_text_is_encoded_as_it_was_given(load):
    llm = load(
        {tuple(RENDERED): "Hello END"}, tokenizer=MergingTokenizer(chat_template=CHAT_TEMPLATE)
    )
    first = llm.chat(QUESTION, temperature=0, stop=" END")
    assert first == "Hello"
    reply = [*QUESTION, {"role": "assistant", "content": first}]
    second = llm.chat([*reply, {"role": "user", "content": "Bye"}], max_tokens=0)
    assert second.timings.reused_tokens == len(RENDERED) + len("Hel")
    assert llm.engine.held == [*RENDERED, *b"Hel", LO, EOS, USER, *b"Bye", EOS, ASSISTANT]


def test_chat_without_a_template_is_refused_with_the_way_out(load):
    with pytest.raises(TokenizerError, match=r"no chat template.*generate"):
        load(tokenizer=ByteTokenizer()).chat(QUESTION)


def test_chat_template_given_wins_over_the_models_own(load, tmp_path):
    path = tmp_path / "short.jinja"
    path.write_text("<|user|>{{ messages[0].content }}<|assistant|>")
    answers = {(USER, *b"Hi", ASSISTANT): "Short"}
    llm = load(answers, chat_template=path)
    assert llm.chat(QUESTION, temperature=0) == "Short"
    llm.chat_template = CHAT_TEMPLATE
    assert llm.chat_template == CHAT_TEMPLATE
    assert llm.chat(QUESTION, temperature=0, max_tokens=0).prompt_tokens == len(RENDERED)


def test_chat_template_of_a_model_without_is_none(load):
    assert load(tokenizer=ByteTokenizer()).chat_template is None


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "messages: expected at least one"),
        ([*QUESTION, {"role": "user"}], r"messages\[1\]: expected .*'content', found 'role'"),
    ],
)
def test_chat_incomplete_messages_are_refused(load, messages, error):
    with pytest.raises(ValueError, match=error):
        load().chat(messages)


@pytest.mark.parametrize("text", ["Hé<|user|>", "Hé<|user|>".encode()])
def test_tokenize_special_tokens_are_plain_text_unless_asked_for(load, text):
    llm = load(tokenizer=ByteTokenizer(add_bos_token=True))
    assert llm.tokenize(text) == [BOS, *"Hé<|user|>".encode()]
    assert llm.tokenize(text, add_bos=False, special=True) == [*"Hé".encode(), USER]


def test_tokenize_bytes_that_are_no_utf8_are_refused_with_the_offset(load):
    with pytest.raises(TokenizerError, match=r"expected UTF-8, found byte 0xff at offset 2"):
        load().tokenize(b"ab\xff")


def test_detokenize_undoes_tokenize(load):
    llm = load(tokenizer=ByteTokenizer(add_bos_token=True))
    assert llm.detokenize(llm.tokenize("Hé<|user|>😀")) == "Hé<|user|>😀"
    assert llm.detokenize([BOS, 72], special=True) == "<s>H"


def test_logits_are_those_after_every_token(load):
    llm = load()
    logits = llm.logits([5, 6, 7])
    assert (logits.shape, logits.dtype) == ((3, VOCAB_SIZE), np.float32)
    engine = FakeEngine()
    for i, token in enumerate([5, 6, 7]):
        assert logits[i].tolist() == engine.evaluate([token], position=i)[0].tolist()


def test_logits_tokens_can_be_continued_without_evaluating_them_again(load):
    llm = load()
    llm.logits(token_ids("Question"))
    assert llm.generate("Question!", max_tokens=1).timings.reused_tokens == 8


def test_logits_no_tokens_or_too_many_are_refused(load):
    llm = load(n_ctx=3)
    with pytest.raises(ValueError, match="at least one token"):
        llm.logits([])
    with pytest.raises(ContextLengthError, match=r"4 tokens.* of 3"):
        llm.logits([1, 2, 3, 4])


def test_stream_left_early_keeps_the_model_usable(load):
    llm = load({"Q": "Hey", "R": "You"})
    for _ in llm.generate("Q", stream=True, temperature=0):
        break
    assert llm.generate("R", temperature=0) == "You"


def test_threads_get_the_answers_they_would_get_alone(load):
    options = {"temperature": 1.0, "seed": 5, "max_tokens": 15}
    prompts = [f"prompt {i}" for i in range(4)]
    alone = {prompt: str(load().generate(prompt, **options)) for prompt in prompts}
    llm = load()  # its engine fails when two threads are in it
    found = {}

    def streamed(prompt):
        found[prompt] = "".join(llm.generate(prompt, stream=True, **options))

    threads = [threading.Thread(target=streamed, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_close_frees_engine_and_file_once_and_refuses_further_work(load):
    with load({"Q": "Hey"}) as llm:
        stream = llm.generate("Q", stream=True, temperature=0)
        assert next(stream) == "H"
    llm.close()
    assert llm.engine.n_closed == 1
    assert llm.file.closed
    for work in (lambda: next(stream), lambda: llm.generate("Q"), lambda: llm.logits([1])):
        with pytest.raises(ValueError, match="closed"):
            work()


def test_load_failure_closes_the_file(load, monkeypatch):
    file = load().file
    file.closed = False
    monkeypatch.setattr(opening, "Engine", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        qllama.Llama("model.qlm")
    assert file.closed


@pytest.mark.parametrize(("seconds_a_stage", "lines"), [(0.1, 0), (0.6, 1), (5, 1)])
def test_load_says_once_that_kernels_are_compiled_if_it_takes_long(
    load, monkeypatch, capsys, seconds_a_stage, lines
):
    clock = itertools.count(step=seconds_a_stage)
    monkeypatch.setattr("qllama.notice.time.monotonic", lambda: next(clock))
    load()
    assert capsys.readouterr().err.count("qllama: compiling kernels") == lines


def test_load_reports_compilation_to_the_caller_instead(load, capsys):
    calls = []
    load(on_compile=lambda *call: calls.append(call))
    assert [done for _, done, _ in calls] == [0, 1, 2, 3]
    assert capsys.readouterr().err == ""


def test_load_cache_type_reaches_the_engine(load):
    assert load().engine.kv_type == "f16"
    assert load(kv_type="q8").engine.kv_type == "q8"


def test_load_maps_the_file_or_reads_it_and_tells_how_far_it_is(load):
    assert load().file.is_mapped
    told = []
    assert not load(use_mmap=False, on_load=lambda *call: told.append(call)).file.is_mapped
    assert told == [(1, 2)]


def test_load_verbose_says_what_was_loaded(load, capsys):
    load(verbose=True, n_ctx=48, n_threads=3, on_compile=lambda *call: None)
    assert "model.qlm in " in (line := capsys.readouterr().err)
    assert "48 tokens of context, 3 threads" in line
