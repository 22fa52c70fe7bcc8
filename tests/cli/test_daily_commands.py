"""`list`, `show`, `rm` and `pull`: what is in the cache, and what leaves it."""

from __future__ import annotations

import io
import json
import os
import shutil
import time

import pytest
from tiny_qlm import write_tiny_qlm

from qllama.cli import cli
from qllama.cli.list import human_age
from qllama.errors import ModelNotFoundError
from qllama.hub.registry import REGISTRY


@pytest.fixture
def size(tiny_qlm) -> str:
    return f"{tiny_qlm.stat().st_size / 1024:.1f} KiB"


@pytest.fixture
def models(isolated_home, tiny_qlm):
    """The directory of a cache with two models, one of them a day old."""
    directory = isolated_home / "cache" / "models"
    directory.mkdir()
    now = time.time()
    for name, age in (("org--name-q4", 86_400 + 60), ("tiny-q4", 300)):
        path = shutil.copy(tiny_qlm, directory / f"{name}.qlm")
        os.utime(path, (now - age, now - age))
    return directory


def left(models) -> list[str]:
    return sorted(path.stem for path in models.iterdir())


def test_list_shows_name_type_size_age_and_origin(run, models, size):
    result = run("list")
    assert result.stdout.splitlines() == [
        "NAME          TYPE      SIZE  MODIFIED       FROM",
        f"tiny-q4       q4    {size}  5 minutes ago  tiny.gguf",
        f"org--name-q4  q4    {size}  1 day ago      tiny.gguf",
    ]
    total = sum(path.stat().st_size for path in models.iterdir()) / 1024
    assert result.stderr == f"qllama: {total:.1f} KiB in {models}\n"


def test_list_file_that_cannot_be_read_is_shown_without_its_type(run, models):
    (models / "old-q4.qlm").write_bytes(b"something else")
    assert "old-q4        ?         14 B  just now       ?" in run("list").stdout


def test_list_json_is_an_array_of_objects(run, models):
    listed = json.loads(run("list", "--json").stdout)
    assert [row["name"] for row in listed] == ["tiny-q4", "org--name-q4"]
    assert listed[0].keys() == {"name", "path", "n_bytes", "modified", "type", "origin"}
    assert listed[0]["path"] == str(models / "tiny-q4.qlm")
    assert listed[0]["modified"].endswith("+00:00")


def test_list_empty_cache_says_how_to_fill_it(run, isolated_home):
    result = run("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "`qllama pull` fetches one" in result.stderr
    assert run("list", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "just now"),
        (0.9, "just now"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (7199, "1 hour ago"),
        (86_400 * 6, "6 days ago"),
        (86_400 * 13, "1 week ago"),
        (86_400 * 60, "1 month ago"),
        (86_400 * 800, "2 years ago"),
    ],
)
def test_age_is_told_in_the_largest_unit_that_fits(seconds, expected):
    assert human_age(seconds) == expected


def test_rm_removes_what_is_named_and_says_so(run, models, size):
    result = run("rm", "org/name")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"qllama: removed org--name-q4 ({size})\n"
    assert left(models) == ["tiny-q4"]


def test_rm_takes_several_and_one_named_twice_goes_once(run, models):
    assert run("rm", "tiny-q4", "org/name", "org--name-q4").exit_code == 0
    assert left(models) == []


def test_rm_unknown_name_keeps_everything(run, models):
    result = run("rm", "tiny-q4", "nothing")
    assert result.exit_code == 1
    assert result.stderr == (
        "qllama: error: nothing: no such model in the cache; `qllama list` shows what is there\n"
    )
    assert left(models) == ["org--name-q4", "tiny-q4"]


def test_rm_empty_name_is_no_model(run, models):
    result = run("rm", "")
    assert result.exit_code == 1
    assert result.stderr.startswith("qllama: error: '': no such model in the cache;")


def test_rm_leaves_files_elsewhere_alone(run, models, tmp_path, monkeypatch):
    mine = write_tiny_qlm(tmp_path / "tiny-q4.qlm")
    monkeypatch.chdir(tmp_path)
    for name in (str(mine), "tiny-q4.qlm", "../tiny-q4.qlm"):
        assert run("rm", "-y", name).exit_code == 1, name
    assert mine.exists()
    assert left(models) == ["org--name-q4", "tiny-q4"]


def test_rm_of_a_link_removes_the_link_only(run, models, tmp_path):
    mine = write_tiny_qlm(tmp_path / "mine.qlm")
    (models / "linked.qlm").symlink_to(mine)
    assert run("rm", "linked").exit_code == 0
    assert mine.exists()
    assert not (models / "linked.qlm").is_symlink()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("arguments", "typed", "removed"),
    [((), "y\n", True), ((), "n\n", False), ((), "\n", False), (("--yes",), "", True)],
)
def test_rm_at_a_terminal_asks_first(models, size, monkeypatch, capsys, arguments, typed, removed):
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    with pytest.raises(SystemExit) as done:
        cli.main(["rm", "tiny-q4", *arguments])
    assert done.value.code == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert (f"Remove tiny-q4 ({size})? [y/N]" in shown.err) is not bool(arguments)
    assert ("tiny-q4" not in left(models)) is removed


def test_show_is_a_short_card(run, models, size):
    result = run("show", "tiny-q4")
    assert result.stdout.splitlines() == [
        "Model",
        "  architecture      llama",
        "  parameters        17.57 k",
        "  context length    128",
        "  embedding length  32",
        "  quantization      q4 (7.68 bits/weight)",
        "",
        "Parameters",
        "  stop           <|end|>",
        "  chat template  yes (--template)",
        "",
        "File",
        f"  path  {models / 'tiny-q4.qlm'}",
        f"  size  {size}",
        "  from  tiny.gguf",
    ]


def test_show_tells_the_chat_defaults_of_a_registered_model_and_its_license(
    run, isolated_home, tmp_path
):
    provenance = {
        "sha256": REGISTRY["smollm2-135m"].sha256,
        "metadata": {"general.license": "apache-2.0"},
    }
    path = write_tiny_qlm(tmp_path / "a.qlm", provenance=provenance)
    shown = run("show", str(path)).stdout
    for line in (
        "  temperature     0.1",
        "  repeat_penalty  1.1",
        "  system          (empty)",
        "  license  apache-2.0",
    ):
        assert f"{line}\n" in shown, shown


def test_show_template_prints_only_that(run, models):
    assert run("show", "org/name", "--template").stdout == "{{ messages }}\n"


def test_show_takes_the_default_type_of_several(run, models, tiny_qlm, monkeypatch):
    monkeypatch.setattr("qllama.hub.registry.DEFAULT_MODEL", "org/name")
    shutil.copy(tiny_qlm, models / "org--name-q8.qlm")
    assert str(models / "org--name-q4.qlm") in run("show").stdout


def test_show_fetches_nothing(run, isolated_home):
    result = run("show")
    assert result.exit_code == 1
    assert "smollm2-135m: no such model in the cache" in result.stderr


def test_pull_prints_each_path_and_goes_on_after_an_error(run, monkeypatch):
    asked = []

    def model_path(name, weight_type):
        asked.append((name, weight_type))
        if name == "bad":
            raise ModelNotFoundError("bad: no\nsuch model")
        return f"{name}.qlm"

    monkeypatch.setattr("qllama.cli.pull.model_path", model_path)
    result = run("pull", "one", "bad", "two", "--type", "q8")
    assert asked == [("one", "q8"), ("bad", "q8"), ("two", "q8")]
    assert (result.exit_code, result.stdout) == (1, "one.qlm\ntwo.qlm\n")
    assert result.stderr == "qllama: error: bad: no such model\n"
    assert run("pull").stdout == "None.qlm\n"
    assert asked[-1] == (None, "q4")
