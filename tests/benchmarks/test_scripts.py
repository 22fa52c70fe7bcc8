"""The scripts as commands: what they would measure, and what they refuse."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import kernels
import reproduce
import scaling
import side_by_side
import startup


@pytest.fixture
def measured(monkeypatch):
    """Cases that the scripts would measure."""
    cases = []
    for script in (side_by_side, scaling):
        monkeypatch.setattr(script, "run_duel", lambda name, found, *rest: cases.extend(found))
    return cases


@pytest.fixture
def models(tmp_path):
    """Empty files by the names of the plan, but for the 3B ones."""
    for _, ours, theirs in side_by_side.PAIRS:
        if not ours.startswith("3b"):
            (tmp_path / ours).touch()
            (tmp_path / theirs).touch()
    return tmp_path


def names(cases):
    return [(case.model, case.n_threads, [test.name for test in case.tests]) for case in cases]


def run(script, *arguments):
    done = CliRunner().invoke(script.main, [str(word) for word in arguments])
    assert done.exit_code == 0, done.output


def test_side_by_side_plan_takes_the_models_that_are_there(models, measured):
    run(side_by_side, "--plan", models, "-t", 2)
    assert names(measured) == [
        ("1B Q4_0", 2, ["pp512", "tg64"]),
        ("1B Q4_0", 2, ["tg64 @ d2048"]),
        ("1B Q8_0", 2, ["pp512", "tg64"]),
        ("1B q4 : Q4_K_M", 2, ["pp512", "tg64"]),
        ("SmolLM2-135M q4 : Q4_1", 2, ["pp512", "tg64"]),
    ]
    assert measured[0].ours.name == "1b-q4_0.qlm"
    assert measured[0].theirs.name == "1b-Q4_0.gguf"


def test_side_by_side_plan_of_one_model_is_that_alone(models, measured):
    run(side_by_side, "--plan", models, "--model", "1B Q8_0", "-t", "2,2")
    assert names(measured) == [("1B Q8_0", 2, ["pp512", "tg64"])]


def test_side_by_side_pair_sequences_together_only_generate(models, measured):
    pair = f"{models / '1b-q4.qlm'}={models / '1b-Q4_K_M.gguf'}"
    run(side_by_side, "--pair", pair, "-p", 16, "-n", 8, "-d", "0,32", "-np", "1,4", "-t", 1)
    assert [tests for _, _, tests in names(measured)] == [
        ["pp16", "tg8"],
        ["tg8 x4"],
        ["pp16 @ d32", "tg8 @ d32"],
        ["tg8 x4 @ d32"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to compare"),
        (["--pair", "gone.qlm=gone.gguf"], "found no 'gone.qlm'"),
        (["-n", "8,x"], "separated by commas, found '8,x'"),
        (["-t", "0"], "of at least 1"),
        (["--rival", "llama-bench"], "expected NAME=COMMAND"),
    ],
)
def test_side_by_side_wrong_usage_is_refused(arguments, message):
    done = CliRunner().invoke(side_by_side.main, arguments)
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")


def test_scaling_depth_and_sequences_use_the_most_threads(models, measured):
    model = models / "1b-q4.qlm"
    run(scaling, model, "-t", "1,2", "--depths", "0,64", "--parallel", "1,8", "-n", 4, "-p", 8)
    assert names(measured) == [
        ("1b-q4", 1, ["pp8", "tg4"]),
        ("1b-q4", 2, ["pp8", "tg4"]),
        ("1b-q4", 2, ["tg4 @ d64"]),
        ("1b-q4", 2, ["tg4 x8"]),
    ]


def test_reproduce_every_step_is_a_command_that_its_script_takes(models, monkeypatch):
    for _, *files in side_by_side.PAIRS:
        for name in files:
            (models / name).touch()
    (models / "model.bin").touch()
    ran = []
    monkeypatch.setattr(reproduce, "_run", lambda *words: ran.append(words))
    rivals = ["--rival", "rival=/opt/llama/bin/llama-bench -x", "--rival", "plain=/opt/plain"]
    others = [
        "--ik",
        "/opt/ik/llama-bench -rtr 1",
        "--ctranslate2",
        "python3",
        models / "model.bin",
    ]
    run(reproduce, models, *rivals, *others)
    scripts = {
        "kernels.py": kernels,
        "side_by_side.py": side_by_side,
        "scaling.py": scaling,
        "startup.py": startup,
    }
    parsed = {}
    for script, *words in ran[:-2]:
        params = scripts[script].main.make_context(script, list(words)).params
        parsed[params["output"].name] = params
    assert list(parsed) == [
        *("kernels.json", "side_by_side.json", "copied.json", "scaling.json", "startup.json"),
        *("others.json", "ik.json", "ctranslate2.json"),
    ]
    told = {name: [rival.told for rival in parsed[name]["rivals"]] for name in list(parsed)[5:]}
    assert told["others.json"] == ["plain=plain"]
    assert told["ik.json"][0].endswith(" rival_ik_llama.py llama-bench -rtr 1")
    assert told["ctranslate2.json"] == ["CTranslate2=python3 rival_ctranslate2.py"]
    starts = parsed["startup.json"]["rivals"]
    assert starts[0].startswith("rival SmolLM2 Q4_1=/opt/llama/bin/llama-completion -no-cnv")
    assert [words[0] for words in ran[-2:]] == ["plot.py", "fill_docs.py"]


def test_reproduce_only_one_step_runs_that_alone(models, monkeypatch):
    ran = []
    monkeypatch.setattr(reproduce, "_run", lambda *words: ran.append(words[0]))
    run(reproduce, models, "--rival", "a=b", "--only", "scaling")
    assert ran == ["scaling.py", "plot.py", "fill_docs.py"]


def test_reproduce_unknown_step_is_refused(models):
    arguments = [str(models), "--rival", "a=b", "--only", "lunch"]
    done = CliRunner().invoke(reproduce.main, arguments)
    assert done.exit_code == 2
    assert "expected one of kernels, side_by_side" in done.output.replace("\n", " ")
