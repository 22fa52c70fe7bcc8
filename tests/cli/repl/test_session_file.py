"""Session files: what they keep, and that a hostile one is refused in one line."""

from __future__ import annotations

import json
import struct
import zlib

import pytest
from fake_llama import FakeLlama

from qllama.cli.repl.conversation import Conversation, Turn
from qllama.cli.repl.session_file import MAGIC, restore_session, save_session
from qllama.errors import StateError

TALK = Conversation("Be brief.", [Turn("one?", "a\n"), Turn('"""two', "é🙂")])


def written(path, text, *, magic=MAGIC, version=2, n_json=None, checksum=None, state=b"state"):
    n_json = len(text) if n_json is None else n_json
    checksum = zlib.crc32(text) if checksum is None else checksum
    path.write_bytes(magic + struct.pack("<III", version, n_json, checksum) + text + state)
    return path


def transcript(**changes):
    whole = {"model": "m", "system": None, "turns": [["one?", "a"]], "parameters": {}}
    return json.dumps({**whole, **changes}).encode()


@pytest.mark.parametrize("talk", [TALK, Conversation(None, []), Conversation("", [])])
def test_session_restored_is_the_one_saved(tmp_path, talk):
    path = tmp_path / "talk.session"
    save_session(path, Conversation(None, [Turn("an", "older one")]), {}, FakeLlama([]), "fake")
    options = {"temperature": 0.5, "max_tokens": -1, "stop": ("END",), "logit_bias": {1: 2.0}}
    n_bytes = save_session(path, talk, options, FakeLlama([]), "fake")
    assert n_bytes == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]
    llm = FakeLlama([])
    del options["logit_bias"]
    assert restore_session(path, llm) == (talk, options)
    assert llm.state == b"the state"


def test_save_and_restore_in_a_session(play, tmp_path):
    path = tmp_path / "talk.session"
    shown = play(FakeLlama([["a"]]), "one", f"/save {path}", system="Be brief.").shown
    size = path.stat().st_size / 1e6
    assert f"Saved the session to '{path}' (1 turn, {size:.1f} MB)\n" in shown
    llm = FakeLlama([["b"]])
    shown = play(llm, f"/restore {path}", "two").shown
    assert (
        f"Restored the session from '{path}' (1 turn, 16 tokens); you last asked 'one'\n" in shown
    )
    assert [m["content"] for m in llm.calls[0][0]] == ["Be brief.", "one", "a", "two"]


def test_restore_brings_the_parameters_back(play, tmp_path):
    path = tmp_path / "talk.session"
    lines = ("/set parameter top_k 5", "/set parameter stop . END", f"/save {path}")
    play(FakeLlama([]), *lines, temperature=0.5)
    llm = FakeLlama([["a"]])
    play(llm, f"/restore {path}", "one", temperature=0.9, logit_bias={1: 2.0})
    assert llm.calls[0][1] == {
        **{"max_tokens": -1, "seed": 1, "temperature": 0.5, "top_k": 5, "stop": (".", "END")},
        "logit_bias": {1: 2.0},
    }


def test_restore_of_another_models_session_changes_nothing(play, tmp_path):
    path = written(tmp_path / "talk.session", transcript())
    llm = FakeLlama([["a"], ["b"]])
    llm.refuses_states = True
    shown = play(llm, "one", f"/restore {path}", "two").shown
    assert f"error: {path}: state: it is of another model\n" in shown
    assert [m["content"] for m in llm.calls[1][0]] == ["one", "a", "two"]


def test_restore_of_no_file_is_one_line(play, tmp_path):
    path = tmp_path / "none"
    assert (
        f"error: {path}: No such file or directory\n"
        in play(FakeLlama([]), f"/restore {path}").shown
    )


def test_save_over_a_file_that_is_no_session_keeps_it(play, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Some notes.")
    shown = play(FakeLlama([]), f"/save {path}").shown
    assert f"error: {path}: exists and is not a session; give another name\n" in shown
    assert path.read_text() == "Some notes."
    path.write_text("")
    assert f"Saved the session to '{path}'" in play(FakeLlama([]), f"/save {path}").shown


def test_save_that_cannot_be_written_leaves_nothing(play, tmp_path):
    shown = play(FakeLlama([]), f"/save {tmp_path / 'no' / 'talk'}").shown
    assert shown.count("\n") == 2
    assert "error: " in shown
    assert list(tmp_path.iterdir()) == []


MALFORMED = {
    "empty": (b"", "not a session"),
    "other magic": ((transcript(), {"magic": b"\x89QLS\r\n\x1a\n"}), "not a session"),
    "header cut": (MAGIC + b"\1\0\0", "not a session"),
    "version": ((transcript(), {"version": 1}), "version: expected 2, found 1"),
    "more json than file": ((transcript(), {"n_json": 1 << 25}), "transcript: expected at most"),
    "json past any limit": ((transcript(), {"n_json": 2**32 - 1}), "transcript: expected at most"),
    "checksum": ((transcript(), {"checksum": 1}), "transcript: expected checksum 00000001"),
    "no json": ((b"{", {}), "transcript: "),
    "no utf-8": ((b'"\xff"', {}), "transcript: "),
    "deep": ((b"[" * 5000 + b"]" * 5000, {}), "transcript: nested"),
    "surrogate": ((transcript(system="\ud800"), {}), "transcript: "),
    "repeated key": ((b'{"model":"m","model":"m","system":null,"turns":[]}', {}), "is repeated"),
    "no object": ((b"[]", {}), "transcript: expected an object of model, parameters, "),
    "unknown field": ((transcript(more=1), {}), "transcript: expected an object of"),
    "model": ((transcript(model=1), {}), "model and system: expected texts"),
    "system": ((transcript(system=[]), {}), "model and system: expected texts"),
    "turns": ((transcript(turns={}), {}), "turns: expected a list"),
    "turn of one": (
        (transcript(turns=[["a", "b"], ["a"]]), {}),
        r"turns\[1\]: expected a question",
    ),
    "turn of numbers": ((transcript(turns=[[1, 2]]), {}), r"turns\[0\]: expected a question"),
    "parameters": ((transcript(parameters=[]), {}), "parameters: expected an object"),
    "unknown parameter": ((transcript(parameters={"x": 1}), {}), "unknown parameter 'x'"),
    "window": ((transcript(parameters={"num_ctx": 5}), {}), "num_ctx: expected options"),
    "parameter's range": ((transcript(parameters={"top_p": 2}), {}), "top_p: expected a finite"),
    "text for a number": ((transcript(parameters={"top_k": "2"}), {}), "top_k: expected an int"),
    "truth for a number": ((transcript(parameters={"top_p": True}), {}), "top_p: expected a n"),
    "real for an integer": ((transcript(parameters={"seed": 1.5}), {}), "seed: expected an int"),
    "text for texts": ((transcript(parameters={"stop": "END"}), {}), "stop: expected a list"),
    "empty question": ((transcript(turns=[["", "a"]]), {}), r"turns\[0\]: expected a question"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_restore_malformed_file_is_refused_in_one_line(tmp_path, name):
    content, message = MALFORMED[name]
    path = tmp_path / "talk.session"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        written(path, content[0], **content[1])
    llm = FakeLlama([])
    with pytest.raises(StateError, match=message) as caught:
        restore_session(path, llm)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert llm.state is None
