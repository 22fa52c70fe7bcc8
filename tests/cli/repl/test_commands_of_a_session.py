"""What the slash commands do and say, to the letter."""

from __future__ import annotations

import shutil

import pytest
from fake_llama import FakeLlama

from qllama.cli.repl.chat import OpenedModel
from qllama.cli.repl.commands import COMMANDS
from qllama.errors import ModelNotFoundError
from qllama.hub.cache import models_dir

SYSTEM = {"role": "system", "content": "Be brief."}


def user(text):
    return {"role": "user", "content": text}


def said(play, *lines, llm=None, **options):
    """Return what followed the last of `lines`."""
    played = play(llm or FakeLlama([["a"], ["b"], ["c"]]), *lines, **options)
    return played.shown.rpartition(f">>> {lines[-1]}\n")[2].removesuffix(">>> ")


def test_help_lists_every_command(play):
    assert said(play, "/?") == said(play, "/help") == HELP
    listed = [line.split()[0].rstrip(",") for line in HELP.splitlines() if "  /" in line]
    assert listed[:-1] == [command.names[0] for command in COMMANDS]


HELP = '''\
Available Commands:
  /set ...         Set session variables
  /show ...        Show model information
  /load <model>    Load another model and begin anew
  /list            List the models in the cache
  /save <file>     Save the session and its KV cache
  /restore <file>  Go on with a saved session
  /clear           Clear session context, but not the system message
  /undo            Take the last question and its answer back
  /regen           Answer the last question again
  /edit            Edit the last question in $EDITOR and ask it anew
  /read <file>     Put a file before the next message
  /tokens <text>   Show the tokens of a text
  /bye, /exit      Exit
  /?, /help        Help for a command
  /? shortcuts     Help for keyboard shortcuts

Use """ to begin a multi-line message.

'''


@pytest.mark.parametrize(
    ("line", "first", "last"),
    [
        ("/? shortcuts", "Available keyboard shortcuts:", "  Ctrl + d      Exit (/bye)"),
        ("/? set", "Available Commands:", "  /set quiet            Disable LLM stats"),
        ("/set", "Available Commands:", "  /set quiet            Disable LLM stats"),
        (
            "/? /show",
            "Available Commands:",
            "  /show context     Show how full the context window is",
        ),
        ("/show", "Available Commands:", "  /show context     Show how full the context window is"),
        (
            "/set parameter",
            "Available Parameters:",
            "  /set parameter stop <string> <string> ...  Set the stop parameters",
        ),
    ],
)
def test_help_of_a_topic(play, line, first, last):
    lines = said(play, line).splitlines()
    assert (lines[0], lines[-2], lines[-1]) == (first, last, "")


def test_help_of_a_command(play):
    assert said(play, "/? read") == "  /read <file>  Put a file before the next message\n"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/nonsense now", "Unknown command '/nonsense'. Type /? for help\n"),
        ("/cler", "Unknown command '/cler'. Did you mean /clear? Type /? for help\n"),
        (
            "/set sistem x",
            "Unknown command '/set sistem'. Did you mean /set system? Type /? for help\n",
        ),
        (
            "/show contxt",
            "Unknown command '/show contxt'. Did you mean /show context? Type /? for help\n",
        ),
        ("/load", "Usage:\n  /load <model>\n"),
    ],
)
def test_command_that_is_none_is_one_line_and_not_sent(play, line, answer):
    llm = FakeLlama([])
    assert said(play, line, llm=llm) == answer
    assert llm.calls == []


def test_clear_forgets_all_but_the_system_message(play):
    llm = FakeLlama([["a"], ["b"]])
    assert (
        "Cleared session context\n" in play(llm, "one", "/clear", "two", system="Be brief.").shown
    )
    assert llm.calls[1][0] == [SYSTEM, user("two")]


def test_undo_takes_the_last_turn_back(play):
    llm = FakeLlama([["a"], ["b"], ["c"]])
    shown = play(llm, "one", "two", "/undo", "three").shown
    assert ">>> /undo\nTook back 'two'\n>>> three" in shown
    assert llm.calls[2][0] == [user("one"), {"role": "assistant", "content": "a"}, user("three")]


def test_undo_of_a_long_question_shows_its_beginning(play):
    shown = said(play, "x" * 70, "/undo")
    assert shown == f"Took back '{'x' * 60}…'\n"


def test_undo_and_regen_of_nothing_say_so(play):
    assert said(play, "/undo") == "There is nothing to take back.\n"
    assert said(play, "/regen") == "There is no answer to make again.\n"


def test_regen_answers_the_last_question_again(play):
    llm = FakeLlama([["a"], ["b"]])
    played = play(llm, "one", "/regen")
    assert played.shown == ">>> one\na\n\n>>> /regen\nb\n\n>>> "
    assert played.messages == [user("one"), {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize("command", ["/regen", "/edit"])
def test_answer_in_the_place_of_another_that_never_comes_leaves_that_one(
    play, monkeypatch, command
):
    monkeypatch.setattr("click.edit", lambda text, extension: "two")
    llm = FakeLlama([["a"], [KeyboardInterrupt()]])
    played = play(llm, "one", command)
    assert played.messages == [user("one"), {"role": "assistant", "content": "a"}]
    assert played.chat.n_used == len(llm.tokenize_chat(played.messages))


def test_regen_leaves_what_was_read_to_the_next_message(play, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Notes.")
    llm = FakeLlama([["a"], ["b"], ["c"]])
    play(llm, "one", f"/read {path}", "/regen", "two")
    assert [call[0][-1]["content"] for call in llm.calls] == ["one", "one", "Notes.\n\ntwo"]


def test_edit_asks_the_edited_question_instead(play, monkeypatch):
    given = []
    monkeypatch.setattr("click.edit", lambda text, extension: given.append(text) or "1?\n")
    llm = FakeLlama([["a"], ["b"]])
    played = play(llm, "one", "/edit")
    assert given == ["one"]
    assert played.messages == [user("1?"), {"role": "assistant", "content": "b"}]


def test_edit_that_saves_nothing_changes_nothing(play, monkeypatch):
    monkeypatch.setattr("click.edit", lambda text, extension: None)
    played = play(FakeLlama([["a"]]), "one", "/edit")
    assert "Nothing was saved in the editor; nothing is sent.\n" in played.shown
    assert played.messages[0] == user("one")


def test_read_puts_the_text_before_the_next_message_only(play, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Some notes.\n")
    llm = FakeLlama([["a"], ["b"]])
    shown = play(llm, f"/read {path}", "What is this?", "And now?").shown
    assert f"Loaded text from '{path}' (12 tokens); it goes with your next message.\n" in shown
    assert llm.calls[0][0] == [user("Some notes.\n\nWhat is this?")]
    assert llm.calls[1][0][-1] == user("And now?")


def test_read_of_no_file_is_one_line(play, tmp_path):
    path = tmp_path / "none.txt"
    assert said(play, f"/read {path}") == f"error: {path}: No such file or directory\n"


def test_tokens_shows_ids_and_texts(play):
    assert said(play, "/tokens a é") == "3 tokens\n      97  'a'\n      32  ' '\n     233  'é'\n"


def test_set_system_begins_the_next_prompt(play):
    llm = FakeLlama([["a"]])
    assert (
        ">>> /set system Be brief.\nSet system message.\n"
        in play(llm, "/set system Be brief.", "one").shown
    )
    assert llm.calls[0][0] == [SYSTEM, user("one")]
    lines = ('/set system """Be', 'brief."""', "/show system")
    assert said(play, *lines) == "Be\nbrief.\n\n"


@pytest.mark.parametrize(
    ("given", "option", "value"),
    [
        ("temperature 0.5", "temperature", 0.5),
        ("num_predict 5", "max_tokens", 5),
        ("seed 7", "seed", 7),
        ("stop END .", "stop", ("END", ".")),
    ],
)
def test_set_parameter_counts_from_the_next_answer(play, given, option, value):
    llm = FakeLlama([["a"], ["b"]])
    name, _, words = given.partition(" ")
    shown = play(llm, "one", f"/set parameter {given}", "two").shown
    assert f"Set parameter '{name}' to '{words.replace(' ', ', ')}'\n" in shown
    assert llm.calls[0][1] == {"max_tokens": -1, "seed": 1}
    assert llm.calls[1][1] == {"max_tokens": -1, "seed": 1, option: value}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("top_k many", "top_k: expected an integer, found 'many'"),
        ("top_p 1 2", "top_p: expected a number, found '1 2'"),
        ("top_p 2", "top_p: expected a finite number from 0 up to 1, found 2.0"),
        ("num_predict -2", "max_tokens: expected None or an integer >= -1, found -2"),
        ("tempo 1", "unknown parameter 'tempo'"),
    ],
)
def test_set_parameter_that_is_wrong_changes_nothing(play, given, reason):
    llm = FakeLlama([["a"]])
    shown = play(llm, f"/set parameter {given}", "one").shown
    assert f"Couldn't set parameter: {reason}\n" in shown
    assert llm.calls[0][1] == {"max_tokens": -1, "seed": 1}


def test_set_parameter_num_ctx_opens_the_model_again_and_the_talk_goes_on(play):
    first, second = FakeLlama([["a"]]), FakeLlama([["b"]])
    asked = []

    def open_model(name, n_ctx):
        asked.append((name, n_ctx))
        return OpenedModel(name, second, None, {})

    play(first, "one", "/set parameter num_ctx 512", "two", open_model=open_model)
    assert asked == [("fake", 512)]
    assert first.closed
    assert [m["content"] for m in second.calls[0][0]] == ["one", "a", "two"]
    assert second.calls[0][1] == {"max_tokens": -1, "seed": 1}


def test_set_format_and_noformat(play):
    llm = FakeLlama([["{}"], ["a"]])
    lines = ("/set format json", "one", "/set noformat", "two")
    shown = play(llm, *lines, json_schema={"type": "array"}).shown
    assert ">>> /set format json\nSet format to 'json' mode.\n>>> one" in shown
    assert ">>> /set noformat\nDisabled format.\n>>> two" in shown
    own = {"max_tokens": -1, "seed": 1}
    json_mode = {"response_format": {"type": "json_object"}}
    assert [options for _, options in llm.calls] == [own | json_mode, own]
    assert said(play, "/set format yaml") == (
        "Invalid or missing format. For 'json' mode use '/set format json'\n"
    )


def test_set_verbose_and_quiet_switch_the_statistics(play):
    lines = ("/set verbose", "one", "/set quiet", "two")
    shown = play(FakeLlama([["a"], ["b"]]), *lines).shown
    assert "Set 'verbose' mode.\n" in shown
    assert "Set 'quiet' mode.\n" in shown
    assert shown.count("eval rate:            ") == 1


def test_set_nowordwrap_and_wordwrap_switch_the_screen(play):
    played = play(FakeLlama([]), "/set nowordwrap")
    assert "Set 'nowordwrap' mode.\n" in played.shown
    assert not played.chat.screen.wordwrap
    assert play(FakeLlama([]), "/set nowordwrap", "/set wordwrap").chat.screen.wordwrap


def test_set_history_decides_what_is_remembered(play):
    assert not play(FakeLlama([]), "/set nohistory").chat.remembers
    assert play(FakeLlama([]), "/set nohistory", "/set history").chat.remembers


def test_show_parameters_are_those_in_use(play):
    lines = said(play, "/set parameter top_k 7", "/show parameters", stop=("a", "b")).splitlines()
    assert lines[0] == "Parameters in use:"
    assert lines[2:4] == [f"  {'num_predict':<30} -1", f"  {'top_k':<30} 7"]
    assert f"  {'num_ctx':<30} 100" in lines
    assert lines[-2] == f"  {'stop':<30} a b"


def test_show_system_and_template_of_a_model_without(play):
    llm = FakeLlama([])
    llm.chat_template = None
    assert said(play, "/show system") == "No system message was specified for this model.\n\n"
    assert said(play, "/show template", llm=llm) == (
        "No prompt template was specified for this model.\n\n"
    )
    assert said(play, "/show template") == "{{ messages }}\n\n"


def test_show_context_counts_the_last_answers_tokens(play):
    assert said(play, "/show context") == (
        "  Context\n    context length      100 tokens\n"
        "    used                0 tokens (0%)\n    turns               0\n\n"
    )
    shown = said(play, "one", "/show context")
    assert "    used                80 tokens (80%)\n    turns               1\n" in shown


def test_show_info_is_the_card_of_the_models_file(play, run, tiny_qlm):
    llm = FakeLlama([])
    llm.model_path = str(tiny_qlm)
    # The path may be folded there, since the terminal's width counts.
    card = run("show", str(tiny_qlm)).stdout.partition("File")[0]
    assert "  quantization      q4 (" in card
    assert said(play, "/show info", llm=llm).startswith(card)


def test_list_shows_the_models_of_the_cache(play, isolated_home, tiny_qlm):
    assert said(play, "/list") == "There are no models in the cache.\n"
    models_dir().mkdir()
    shutil.copy(tiny_qlm, models_dir() / "mine.qlm")
    heading, row = said(play, "/list").splitlines()
    assert heading.split() == ["NAME", "TYPE", "SIZE", "MODIFIED", "FROM"]
    assert row.split()[:2] == ["mine", "q4"]


def test_load_begins_anew_with_the_other_model(play):
    first, second = FakeLlama([["a"]]), FakeLlama([["b"]])

    def open_model(name, n_ctx):
        return OpenedModel(name, second, "Be brief.", {"seed": 2})

    shown = play(first, "one", "/load other", "two", open_model=open_model).shown
    assert ">>> /load other\nLoading model 'other'\n>>> two\nb\n" in shown
    assert first.closed
    assert second.calls == [([SYSTEM, user("two")], {"seed": 2})]


def test_load_that_fails_keeps_the_model(play):
    def open_model(name, n_ctx):
        raise ModelNotFoundError("no such model")

    llm = FakeLlama([["a"]])
    shown = play(llm, "/load other", "one", open_model=open_model).shown
    assert (
        shown == ">>> /load other\nLoading model 'other'\nerror: no such model\n>>> one\na\n\n>>> "
    )
    assert not llm.closed
