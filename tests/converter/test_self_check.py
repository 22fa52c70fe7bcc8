"""The check of a new file: what it refuses, what it remarks on, what it lets pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_gguf import write_gguf
from tiny_hf import config_of, write_repository
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from converter import slabs
from converter.check import readings, self_check
from converter.check.readings import Probe, Reading, Repetition, alternatives, looks_trained
from converter.check.weights import StoredWeights
from converter.pipeline import convert
from converter.sources import gguf
from converter.sources.gguf import GgufSource
from converter.sources.views import interleaved_to_half_split
from qllama.config import RopeScaling
from qllama.errors import ConversionError
from qllama.format.reader import QlmFile
from qllama.tokenizer import load_tokenizer


@pytest.fixture
def source(tmp_path):
    return write_gguf(tmp_path / "m.gguf")


def changed_source(monkeypatch, **changes):
    """Let GGUF files be opened with another config."""

    class Changed(GgufSource):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.config = replace(self.config, **changes)

    monkeypatch.setattr(gguf, "GgufSource", Changed)


@pytest.mark.parametrize("preset", ["q4", "q4_0", "q8", "f16", "bf16", "f32"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_check_random_weights_pass_without_a_remark(tmp_path, arch, preset):
    keys = {"attention.key_length": 64, "attention.value_length": 64} if arch == "qwen3" else {}
    source = write_gguf(tmp_path / "m.gguf", arch=arch, keys=keys)
    assert convert(source, tmp_path / "out.qlm", type=preset).notices == ()


@pytest.mark.parametrize("preset", ["q4", "q8", "f32"])
def test_check_rows_stored_in_another_order_are_refused(tmp_path, source, preset, monkeypatch):
    # The figures of quality would show it too; here they are those of the wrong rows.
    measured = slabs.quantize_measured
    monkeypatch.setattr(
        slabs,
        "quantize_measured",
        lambda type, w, *rest, **fast: measured(type, w[::-1].copy(), *rest, **fast),
    )
    with pytest.raises(ConversionError, match=r"m\.gguf: the conversion is not right: after 2 lay"):
        convert(source, tmp_path / "out.qlm", type=preset)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def embedding_of_zeros(tokens):
    values = np.random.default_rng(0).standard_normal((270, 256), np.float32) * np.float32(0.05)
    values[tokens] = 0
    return {"token_embd.weight": values}


@pytest.mark.parametrize("only_first", [True, False])
@pytest.mark.filterwarnings("error")
def test_check_embeddings_of_zeros_pass(tmp_path, source, only_first):
    tokens = tokenizer_of(source).encode(self_check.TEXT, add_special=True, parse_special=False)
    zeros = embedding_of_zeros(tokens[:1] if only_first else tokens)
    write_gguf(source, extra=zeros)
    assert convert(source, tmp_path / "out.qlm").notices == ()


def test_check_zeros_that_became_something_else_are_refused(tmp_path, monkeypatch):
    source = write_gguf(tmp_path / "m.gguf", extra=embedding_of_zeros(range(270)))
    measured = slabs.quantize_measured
    monkeypatch.setattr(
        slabs,
        "quantize_measured",
        lambda type, w, *rest, **fast: (
            measured(type, w + 1, *rest, **fast)[0],
            np.zeros((1, 5)),
        ),
    )
    with pytest.raises(ConversionError, match="this is a bug in qllama"):
        convert(source, tmp_path / "out.qlm", type="f32")


@pytest.mark.filterwarnings("error")
def test_check_weights_that_overflow_are_the_checkpoint_s_fault(tmp_path):
    large = np.full((512, 256), 1e25, np.float32)
    names = ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")
    source = write_gguf(tmp_path / "m.gguf", extra=dict.fromkeys(names, large))
    with pytest.raises(ConversionError, match=r"checkpoint's own states are not finite: its wei"):
        convert(source, tmp_path / "out.qlm", type="f32")


def test_check_that_is_switched_off_is_not_made(tmp_path, source, monkeypatch):
    monkeypatch.setattr(self_check, "_compare_states", lambda *_: pytest.fail("it was checked"))
    convert(source, tmp_path / "out.qlm", check=False)


def test_check_tokenizer_of_a_larger_model_is_refused(source):
    with pytest.raises(ConversionError, match=r"gives the id 26., but the model has 100 tokens"):
        list(self_check._tokenizer_notices(tokenizer_of(source), 100))


def tokenizer_of(path):
    return load_tokenizer(*GgufSource(path).tokenizer)


@pytest.mark.parametrize(
    ("template", "remark"),
    [
        (None, []),
        ("{{ messages[0]['content'] }}", []),
        ("Hello!", ["chat will not work: the chat template leaves the user's message out"]),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            ["chat will not work: chat template, line 1: it takes more than 1,000,000 steps"],
        ),
        ("{{ raise_exception('no') }}", ["chat will not work: chat template, line 1: no"]),
    ],
)
def test_check_chat_template_that_fails_is_remarked_on(source, template, remark):
    record, blob = GgufSource(source).tokenizer
    tokenizer = load_tokenizer(replace(record, chat_template=template), blob)
    assert list(self_check._tokenizer_notices(tokenizer, 300)) == remark


def test_check_tokenizer_that_knows_no_letter_is_remarked_on(tmp_path):
    digits = Tokenizer(models.BPE({digit: i for i, digit in enumerate("0123456789")}, []))
    digits.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits.decoder = decoders.ByteLevel()
    directory = write_repository(tmp_path / "digits", config_of(bos_token_id=0, eos_token_id=1))
    digits.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").unlink()
    notices = convert(directory, tmp_path / "out.qlm").notices
    assert notices == ("the tokenizer does not know a letter of English",)


def test_check_tokenizer_that_changes_the_text_is_refused(source):
    class Deaf:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def decode(self, ids):
            return "something else"

    tokenizer = tokenizer_of(source)
    with pytest.raises(ConversionError, match=r"turns 'The sun .*' into 'something else'"):
        list(self_check._tokenizer_notices(Deaf(), 300))


@pytest.mark.parametrize(
    ("order", "taken"),
    [
        (lambda order: np.arange(len(order)), "from interleaved"),
        (lambda order: order[order], "to interleaved"),
    ],
    ids=["not permuted", "permuted twice"],
)
def test_check_smollm2_with_wrong_rows_of_q_and_k_is_refused(
    smollm2_gguf, tmp_path, monkeypatch, order, taken
):
    monkeypatch.setattr(
        gguf,
        "interleaved_to_half_split",
        lambda rows, head_dim: order(interleaved_to_half_split(rows, head_dim)),
    )
    with pytest.raises(ConversionError, match=f"rows of q and k .* wrong order: taken {taken}, "):
        convert(smollm2_gguf, tmp_path / "out.qlm")
    assert list(tmp_path.iterdir()) == []


def test_check_smollm2_with_a_wrong_rope_theta_is_refused(smollm2_gguf, tmp_path, monkeypatch):
    changed_source(monkeypatch, rope_theta=10000.0)
    # 100000 is right; larger ones do as well where the text is so short.
    with pytest.raises(ConversionError, match=r"rope_theta 10000 does not fit .* with 100000"):
        convert(smollm2_gguf, tmp_path / "out.qlm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_check_smollm2_with_a_linear_rope_scaling_is_refused(
    smollm2_gguf, tmp_path, monkeypatch, factor
):
    changed_source(monkeypatch, rope_scaling=RopeScaling("linear", factor))
    with pytest.raises(ConversionError, match=r"rope_scaling does not fit the weights: without it"):
        convert(smollm2_gguf, tmp_path / "out.qlm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", ["q4", "q8"])
def test_check_smollm2_as_it_is_passes_without_a_remark(smollm2_gguf, tmp_path, preset):
    assert convert(smollm2_gguf, tmp_path / "out.qlm", type=preset).notices == ()


def test_check_trained_weights_are_told_from_random_ones(smollm2_q4, source, tmp_path):
    convert(source, tmp_path / "random.qlm")
    for path, trained in ((smollm2_q4, True), (tmp_path / "random.qlm", False)):
        with QlmFile.open(path) as file:
            assert looks_trained(StoredWeights(file)) is trained


def test_probe_lists_hold_different_words_three_times(smollm2_q4):
    with QlmFile.open(smollm2_q4) as file:
        tokenizer = load_tokenizer(file.tokenizer, file.tokenizer_blob)
        probe = Probe.of(tokenizer, file.config)
        assert Probe.of(tokenizer, replace(file.config, max_position_embeddings=63)) is None
        short = Probe.of(tokenizer, replace(file.config, sliding_window=1024))
    words = [word for words in probe.lists for word in words]
    assert len(set(words)) == 36
    assert all(tokenizer.token_text(word)[1:].isalpha() for word in words)
    (text, _, _) = probe.texts(Reading(1e5))
    assert text.tokens == probe.lists[0] * 3
    assert text.positions == (*range(24), *range(1536, 1548))
    assert short.far == 768


def test_probe_of_a_vocabulary_without_words_is_none(source):
    opened = GgufSource(source)
    assert Probe.of(load_tokenizer(*opened.tokenizer), opened.config) is None


def test_alternatives_leave_out_bases_near_the_stated_one(source):
    thetas = [r.rope_theta for r in alternatives(GgufSource(source).config) if r.rows == "kept"]
    assert thetas == [1e5, 5e5, 1e6]


# Of a vocabulary of 270: a blind guess costs 5.6 nats.
@pytest.mark.parametrize(
    ("stated", "others", "outcome"),
    [
        (Repetition(1.0, 4.0), None, "passes"),
        (Repetition(1.0, 5.0), None, "remark"),
        (Repetition(6.0, 6.0), {}, "remark"),
        (Repetition(6.0, 6.0), {"from interleaved": Repetition(5.0, 5.0)}, "remark"),
        (Repetition(6.0, 6.0), {"to interleaved": Repetition(1.0, 6.0)}, "taken to interleaved"),
        (Repetition(1.0, 6.0), {"to interleaved": Repetition(0.5, 6.0)}, "remark"),
        (Repetition(1.0, 6.0), {1e5: Repetition(3.0, 2.0)}, "with 100000, "),
        (
            Repetition(1.0, float("nan")),
            {5e5: Repetition(3.0, 2.0), 1e6: Repetition(3.0, 1.0)},
            "with 500000 or 1e[+]06, .* after 100 tokens at 1.0 nats each instead of nan",
        ),
    ],
)
def test_check_weighs_other_readings_only_where_the_stated_fails(
    tmp_path, source, monkeypatch, stated, others, outcome
):
    probe = Probe((), ((1, 2), (3, 4), (5, 6)), 100)
    monkeypatch.setattr(Probe, "of", lambda *_: probe)
    monkeypatch.setattr(readings, "_N_WORDS", 2)
    bad = Repetition(9.0, 9.0)
    answers = [[stated]]
    if others is not None:
        config = GgufSource(source).config
        answers.append(
            [
                others.get(r.rows if r.rows != "kept" else r.rope_theta, bad)
                for r in alternatives(config)
            ]
        )
    monkeypatch.setattr(Probe, "losses", lambda *_: answers.pop(0))
    monkeypatch.setattr(self_check, "looks_trained", lambda weights: True)
    if outcome in ("passes", "remark"):
        english, *repeats = convert(source, tmp_path / "out.qlm").notices
        assert english.startswith("it reads English at ")
        assert len(repeats) == (outcome == "remark")
    else:
        with pytest.raises(ConversionError, match=outcome):
            convert(source, tmp_path / "out.qlm")
    assert answers == []
