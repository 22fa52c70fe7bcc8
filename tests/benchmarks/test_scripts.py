"""The scripts as commands: what they would measure, and what they refuse."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from tiny_gguf import write_gguf

import kernels
import lora
import reproduce
import scaling
import side_by_side
import startup
from converter.pipeline import convert
from harness.document import read


@pytest.fixture
def measured(monkeypatch):
    """Cases that the scripts would measure."""
    cases = []
    for script in (side_by_side, scaling):
        monkeypatch.setattr(script, "run_duel", lambda name, found, *rest: cases.extend(found))
    return cases


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model file that opens."""
    directory = tmp_path_factory.mktemp("tiny")
    convert(write_gguf(directory / "tiny.gguf"), directory / "tiny.qlm", type="q8_0")
    return directory / "tiny.qlm"


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
        (["--rival", "a=x", "--rival", "a=y"], "two rivals are called 'a'"),
        (["--rival", "qllama=x"], "two rivals are called 'qllama'"),
        (["--plan", ".", "-np", "8"], "--plan has tests of its own: leave out -np"),
        (["--plan", ".", "-p", "512"], "--plan has tests of its own: leave out -p"),
        (["--model", "1B Q8_0"], "--model chooses from a --plan"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to start"),
        (["--rival", "foo"], "expected NAME=COMMAND, found 'foo'"),
        (["--rival", "a=x", "--rival", "a=y"], "two starts are called 'a'"),
        (["--rival", "a=x", "-c", "-1"], "-1 is not in the range"),
        (["--rival", "a=x", "-t", "0"], "0 is not in the range"),
        (["--rival", "a=x 'y"], "No closing quotation"),
    ],
)
def test_startup_wrong_usage_is_refused(arguments, message):
    done = CliRunner().invoke(startup.main, arguments)
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")


def test_startup_models_of_one_name_are_refused(models, tmp_path):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "1b-q4.qlm"
    other.touch()
    done = CliRunner().invoke(startup.main, [str(models / "1b-q4.qlm"), str(other)])
    assert done.exit_code == 2
    assert "two starts are called 'qllama 1b-q4'" in done.output.replace("\n", " ")


def test_startup_program_that_is_not_there_is_one_line(tmp_path):
    arguments = ["--rival", "a=no-such-program", "-o", str(tmp_path / "startup.json")]
    done = CliRunner().invoke(startup.main, arguments)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == "Error: no-such-program: No such file or directory"


def test_startup_document_is_written_after_each_round(monkeypatch, tmp_path):
    starts = []

    def launch(command):
        starts.append(command)
        if len(starts) == 4:
            raise click.ClickException("out of memory")
        return {"seconds_to_output": 1.0, "seconds": 2.0, "peak_rss_bytes": 3}

    monkeypatch.setattr(startup, "_launch", launch)
    output = tmp_path / "startup.json"
    done = CliRunner().invoke(startup.main, ["--rival", "a=x", "-r", "5", "-o", str(output)])
    assert done.exit_code == 1
    document = read(output)
    # Two rounds that count, after the one that does not.
    assert [len(samples) for samples in document["starts"].values()] == [2]
    assert document["is_complete"] is False


def test_startup_opens_with_the_installation_that_the_scripts_import(tiny, monkeypatch, tmp_path):
    (tmp_path / "qllama.py").write_text("raise SystemExit('a checkout in this directory')")
    monkeypatch.chdir(tmp_path)
    assert 0 < startup._open(tiny) < 10


def test_reproduce_every_step_is_a_command_that_its_script_takes(models, monkeypatch):
    for _, *files in side_by_side.PAIRS:
        for name in files:
            (models / name).touch()
    (models / "model.bin").touch()
    ran = []
    monkeypatch.setattr(reproduce, "_run", lambda *words: ran.append(words) or True)
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
    name, command = starts[0]
    assert name == "rival SmolLM2 Q4_1"
    assert command[:2] == ["/opt/llama/bin/llama-completion", "-no-cnv"]
    assert command[-1] == f"{models}/SmolLM2-135M-Instruct.Q4_1.gguf"
    # Every model of the plan, the large ones too.
    assert parsed["others.json"]["models"] == models
    assert parsed["others.json"]["chosen"] == ()
    assert [words[0] for words in ran[-2:]] == ["plot.py", "fill_docs.py"]


def test_reproduce_only_one_step_runs_that_alone(models, monkeypatch):
    ran = []
    monkeypatch.setattr(reproduce, "_run", lambda *words: ran.append(words[0]) or True)
    run(reproduce, models, "--rival", "a=b", "--only", "scaling")
    assert ran == ["scaling.py", "plot.py", "fill_docs.py"]


def test_reproduce_step_that_fails_is_told_at_the_end(models, monkeypatch):
    ran = []
    monkeypatch.setattr(
        reproduce, "_run", lambda *words: ran.append(words[0]) or words[0] != "scaling.py"
    )
    arguments = [str(models), "--rival", "a=b"]
    done = CliRunner().invoke(reproduce.main, arguments)
    assert done.exit_code == 1
    assert ran[-4:] == ["scaling.py", "startup.py", "plot.py", "fill_docs.py"]
    assert "not all was measured; the rest: --only scaling" in done.output


def test_reproduce_interrupted_tells_what_is_left(models, monkeypatch):
    ran = []

    def interrupted(*words):
        ran.append(words[0])
        if words[0] == "scaling.py":
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(reproduce, "_run", interrupted)
    done = CliRunner().invoke(reproduce.main, [str(models), "--rival", "a=b"])
    assert done.exit_code == 1
    assert ran[-3:] == ["scaling.py", "plot.py", "fill_docs.py"]
    assert "the rest: --only scaling --only startup" in done.output


@pytest.mark.parametrize(("program", "ends_well"), [("pass", True), ("raise SystemExit(3)", False)])
def test_reproduce_run_says_whether_a_script_ended_well(monkeypatch, tmp_path, program, ends_well):
    (tmp_path / "script.py").write_text(program)
    monkeypatch.setattr(reproduce, "_HERE", tmp_path)
    assert reproduce._run("script.py") is ends_well


def test_reproduce_unknown_step_is_refused(models):
    arguments = [str(models), "--rival", "a=b", "--only", "lunch"]
    done = CliRunner().invoke(reproduce.main, arguments)
    assert done.exit_code == 2
    assert "expected one of kernels, side_by_side" in done.output.replace("\n", " ")


def test_lora_prints_a_row_a_case(tiny):
    done = CliRunner().invoke(lora.main, [str(tiny), "-p", "20", "-n", "2", "-r", "1", "-t", "2"])
    assert done.exit_code == 0, done.output
    rows = [line.split("|")[1:-1] for line in done.output.splitlines()]
    assert [row[0].strip() for row in rows[2:]] == ["plain", *lora.CASES]
    assert all(float(cell) > 0 for row in rows[2:] for cell in row[2:])
