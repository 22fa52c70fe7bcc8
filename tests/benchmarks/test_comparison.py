"""Engines taking turns, the statistics of their rounds, tables and documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import pytest

from harness.comparison import Case, compare
from harness.document import comparisons_in, new_document, read, write
from harness.duel import DuelSettings, run_duel
from harness.engines import Run
from harness.ratios import Ratio, ratio_of_rounds
from harness.tables import comparison_table
from qllama.bench.plan import Test as BenchTest

PROMPT, ANSWER = BenchTest(512, 0), BenchTest(0, 64)
CASE = Case("1B", Path("/models/1b.qlm"), Path("/models/1b.gguf"), (PROMPT, ANSWER), 2)


class FakeEngine:
    """Says speeds from a script, and who was asked for what."""

    def __init__(self, name, speeds, log):
        self.name = name
        self._speeds = speeds
        self._log = log

    def measure(self, model, tests, n_threads, repetitions, arguments=()):
        self._log.append((self.name, model.name, tuple(tests), " ".join(arguments)))
        return [
            Run(test, [self._speeds[" ".join(arguments), test]] * repetitions) for test in tests
        ]


def constant(name, pp, tg, log):
    return FakeEngine(name, {("", PROMPT): pp, ("", ANSWER): tg}, log)


def run(ours, rivals, variants=((),), rounds=3, repetitions=2):
    return compare(CASE, ours, rivals, variants, rounds, repetitions, lambda *turn: None)


def test_compare_order_turns_around_from_round_to_round():
    log = []
    run(constant("qllama", 1, 1, log), [constant("a", 1, 1, log), constant("b", 1, 1, log)])
    assert "".join(name[0] for name, *_ in log) == "qabbaqqab"
    assert {(name, file) for name, file, *_ in log} == {
        ("qllama", "1b.qlm"),
        ("a", "1b.gguf"),
        ("b", "1b.gguf"),
    }


def test_compare_keeps_every_sample_of_every_round():
    prompt, answer = run(constant("qllama", 300.0, 30.0, []), [constant("a", 100.0, 20.0, [])])
    assert (prompt.test, answer.test) == (PROMPT, ANSWER)
    assert answer.ours.rounds == [[30.0, 30.0]] * 3
    assert answer.rivals[0].rounds == [[20.0, 20.0]] * 3
    assert prompt.rivals[0].samples == [100.0] * 6


def test_compare_keeps_what_engines_say_in_every_round():
    class Talkative(FakeEngine):
        def measure(self, *arguments):
            runs = super().measure(*arguments)
            for run in runs:
                run.details = {"round": len(self._log), "gb_s": None}
            return runs

    log = []
    _, answer = run(Talkative("qllama", {("", PROMPT): 1.0, ("", ANSWER): 1.0}, log), [])
    assert [details["round"] for details in answer.ours.details] == [1, 2, 3]
    assert answer.ours.detail("round") == 2
    assert answer.ours.detail("gb_s") is None


@pytest.mark.parametrize(
    ("answered", "found"), [([], "none"), ([BenchTest(256, 0), ANSWER], "pp256, tg64")]
)
def test_compare_rival_that_answers_something_else_is_named(answered, found):
    class Deaf(FakeEngine):
        def measure(self, *arguments):
            return [Run(test, [1.0]) for test in answered]

    message = f"^deaf: expected results of pp512, tg64, found {found}$"
    with pytest.raises(click.ClickException, match=message):
        run(constant("qllama", 1, 1, []), [Deaf("deaf", {}, [])])


@pytest.fixture
def duel(monkeypatch, tmp_path):
    """Run two cases of an engine that fails after so many measurements; gives its document."""

    def go(n_good, error=None):
        class Weak(FakeEngine):
            def measure(self, *arguments):
                if len(self._log) == n_good:
                    raise error
                return super().measure(*arguments)

        weak = Weak("qllama", {("", PROMPT): 9.0, ("", ANSWER): 7.0}, [])
        weak.limits = [{"read_gb_s": 20.0}]
        monkeypatch.setattr("harness.duel.Qllama", lambda arguments: weak)
        cases = [CASE, replace(CASE, model="3B")]
        run_duel("side_by_side", cases, DuelSettings((), (), "", 2, 1), tmp_path / "duel.json")

    return go, tmp_path / "duel.json"


def test_duel_document_has_all_cases_and_limits(duel, capsys):
    go, path = duel
    go(99)
    document = read(path)
    assert [c.model for c in comparisons_in(document)] == ["1B", "1B", "3B", "3B"]
    assert document["is_complete"] is True
    assert document["limits"] == [{"read_gb_s": 20.0}]
    assert capsys.readouterr().out.count("| 3B ") == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.ClickException("out of memory")])
def test_duel_that_fails_leaves_the_cases_before(duel, capsys, error):
    go, path = duel
    with pytest.raises(type(error)):
        go(3, error)
    document = read(path)
    assert [c.model for c in comparisons_in(document)] == ["1B", "1B"]
    assert document["is_complete"] is False
    assert capsys.readouterr().out.count("| 1B ") == 2
    assert list(path.parent.iterdir()) == [path]


def test_compare_variants_fastest_of_each_test_is_kept_after_the_first_round():
    log = []
    speeds = {
        ("-fa 1", PROMPT): 110.0,
        ("-fa 0", PROMPT): 90.0,
        ("-fa 1", ANSWER): 10.0,
        ("-fa 0", ANSWER): 25.0,
    }
    prompt, answer = run(
        constant("qllama", 1, 1, []),
        [FakeEngine("a", speeds, log)],
        variants=[["-fa", "1"], ["-fa", "0"]],
        rounds=2,
        repetitions=1,
    )
    assert [(tests, arguments) for _, _, tests, arguments in log] == [
        ((PROMPT, ANSWER), "-fa 1"),
        ((PROMPT, ANSWER), "-fa 0"),
        ((PROMPT,), "-fa 1"),
        ((ANSWER,), "-fa 0"),
    ]
    assert (prompt.rivals[0].arguments, prompt.rivals[0].rounds) == ("-fa 1", [[110.0], [110.0]])
    assert (answer.rivals[0].arguments, answer.rivals[0].rounds) == ("-fa 0", [[25.0], [25.0]])
    assert answer.rivals[0].tried == {"-fa 1": [10.0], "-fa 0": [25.0]}
    assert answer.ours.tried == {}


def test_ratio_of_rounds_compares_within_a_round_only():
    # The machine is twice as fast in the second round: the ratio does not see it.
    ours = [[30.0, 33.0, 90.0], [60.0]]
    theirs = [[11.0], [20.0, 20.0]]
    assert ratio_of_rounds(ours, theirs) == Ratio(median=3.0, low=3.0, high=3.0, n_rounds=2)


def test_ratio_of_a_single_round_has_no_spread():
    assert str(ratio_of_rounds([[10.0, 12.0]], [[10.0, 10.0]])) == "1.10"


def test_ratio_of_rounds_spread_is_that_of_the_rounds():
    ratio = ratio_of_rounds([[10.0], [12.0], [30.0]], [[10.0], [10.0], [10.0]])
    assert str(ratio) == "1.20 (1.00-3.00)"


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([[1.0]], [[1.0], [2.0]])])
def test_ratio_of_rounds_without_partners_is_refused(ours, theirs):
    with pytest.raises(ValueError, match=r"no rounds|zip"):
        ratio_of_rounds(ours, theirs)


def test_comparison_table_has_medians_shares_and_ratios_and_gaps_for_absent_rivals():
    first = run(constant("qllama", 1300.0, 30.0, []), [constant("a", 650.0, 20.0, [])])
    second = run(constant("qllama", 10.0, 5.0, []), [constant("b", 10.0, 10.0, [])])
    said = {"gb_s": 21.04, "read_share": 0.934, "weights_share": 0.97, "gop_s": None}
    # Medians of the rounds: the last one alone says something else.
    first[1].ours.details = [said, said, said | {"gb_s": 10.0, "weights_share": 0.5}]
    lines = comparison_table([*first, *second]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][3:] == [
        *("qllama t/s", "GB/s", "of weights", "GOP/s"),
        *("a t/s", "ratio (min-max)", "b t/s", "ratio (min-max)"),
    ]
    assert cells[2] == ["1B", "pp512", "2", "1300", *3 * [""], "650.0", "2.00 (2.00-2.00)", "", ""]
    assert cells[3][3:9] == ["30.0", "21.0 (93%)", "97%", "", "20.0", "1.50 (1.50-1.50)"]
    assert cells[5][3:] == ["5.0", *5 * [""], "10.0", "0.50 (0.50-0.50)"]


def test_document_comparisons_are_read_as_they_were_written(tmp_path):
    comparisons = run(constant("qllama", 3.0, 4.0, []), [constant("a", 1.0, 2.0, [])])
    path = tmp_path / "new" / "document.json"
    write(new_document("side_by_side", {"rounds": 3}, {"comparisons": comparisons}), path)
    document = read(path)
    assert comparisons_in(document) == comparisons
    assert document["settings"] == {"rounds": 3}
    assert document["environment"]["python"]
    assert str(CASE.ours.parent) not in path.read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}'])
def test_document_read_anything_else_is_refused(tmp_path, text):
    path = tmp_path / "document.json"
    path.write_text(text)
    with pytest.raises(click.ClickException, match=r"document\.json: expected"):
        read(path)
