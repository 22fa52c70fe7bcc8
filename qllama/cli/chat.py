"""`qllama chat`: a conversation on a terminal, or one answer and out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from qllama.cli.answering import print_answer
from qllama.cli.form import form_options
from qllama.cli.interrupts import leaving_in_order
from qllama.cli.json_answer import print_json
from qllama.cli.keyboard import keys_not_echoed
from qllama.cli.loading import choose_template, load_model
from qllama.cli.options import (
    chat_template_option,
    debug_option,
    file_option,
    generation_options,
    json_option,
    model_argument,
    verbose_option,
)
from qllama.cli.progress import PromptProgress, notice
from qllama.cli.repl.asking import Asking
from qllama.cli.repl.chat import Chat, OpenedModel
from qllama.cli.repl.conversation import Conversation
from qllama.cli.repl.overflow import DEFAULT_POLICY, POLICIES
from qllama.cli.runtime import RuntimeOptions, runtime_options
from qllama.cli.sections import SectionedCommand
from qllama.cli.speculation import speculation_options
from qllama.cli.text_input import read_prompt
from qllama.hub import registry

if TYPE_CHECKING:
    from qllama.generation.generator import GenerationOptions

__all__ = ["command"]


@click.command(
    "chat",
    cls=SectionedCommand,
    short_help="Talk with a model.",
    epilog="""\b
Examples:
  qllama chat
  qllama chat -p "What is the capital of France?"
  qllama chat -p "What is this about?" -f README.md
  git log -5 | qllama chat -sys "Sum up in one sentence."
""",
)
@model_argument
@click.option("-p", "--prompt", metavar="TEXT", help="Answer TEXT and exit; - reads stdin.")
@file_option
@click.option("-sys", "--system", metavar="TEXT", help="System message.  [default: the model's]")
@chat_template_option
@generation_options
@form_options
@click.option(
    "--on-overflow",
    type=click.Choice(POLICIES),
    default=DEFAULT_POLICY,
    show_default=True,
    help="When a conversation no longer fits the context window: forget the oldest turns and go "
    "on, cut what is too long, or refuse. It is always said.",
)
@click.option("--plain", is_flag=True, help="Draw no markdown in a session.")
@runtime_options
@speculation_options
@json_option
@verbose_option
@debug_option
def command(
    model: str | None,
    prompt: str | None,
    file: Path | None,
    system: str | None,
    chat_template: Path | None,
    options: GenerationOptions,
    on_overflow: str,
    plain: bool,
    runtime: RuntimeOptions,
    as_json: bool,
    verbose: bool,
) -> None:
    """Talk with MODEL, using the chat template it carries, or --chat-template.

    On a terminal this is a session: type messages at `>>> `, Ctrl-C stops an
    answer, Ctrl-D leaves, /save keeps the conversation for another day, /? lists the
    commands. With -p or -f, or with text piped in, it answers once and exits; only the
    answer goes to stdout. With -p and -f together, the message is TEXT, an empty line and
    the text of FILE.

    The default model brings its own --temp 0.1, --top-p 0.9, --repeat-penalty 1.1
    and an empty system message, where you give none.
    """
    text = read_prompt(prompt, file)
    if text is not None and not text.strip():
        raise click.UsageError("The prompt is empty: give -p TEXT, -f FILE or pipe text in.")
    if text is None and as_json:
        raise click.UsageError("--json is for one answer: give -p TEXT, -f FILE or pipe text in.")

    def open_model(name: str | None, n_ctx: int) -> OpenedModel:
        llm = load_model(name, replace(runtime, n_ctx=n_ctx))
        choose_template(llm, chat_template)
        name = name or registry.DEFAULT_MODEL
        defaults = registry.chat_defaults(llm.provenance)
        if defaults is None:
            return OpenedModel(name, llm, system, options)
        own_system = defaults.system if system is None else system
        return OpenedModel(name, llm, own_system, _filled_in(options, defaults))

    if text is not None:
        opened = open_model(model, runtime.n_ctx)
        asking = Asking(opened.llm, Conversation(opened.system), opened.options, on_overflow)
        reading = PromptProgress()
        stream = asking.start(text.strip(), reading.read)
        for remark in asking.notices():
            notice(f"qllama: {remark}")
        (print_json if as_json else print_answer)(stream, opened.options, reading, verbose=verbose)
        return
    from qllama.cli.repl.display import choose_screen
    from qllama.cli.repl.line_editor import line_reader
    from qllama.cli.repl.loop import talk

    with leaving_in_order():
        # What is typed meanwhile stands at the prompt, and not among the progress.
        with keys_not_echoed():
            opened = open_model(model, runtime.n_ctx)
        screen = choose_screen(plain=plain)
        chat = Chat(opened, open_model, screen, on_overflow=on_overflow, verbose=verbose)
        talk(chat, line_reader(chat))


def _filled_in(options: GenerationOptions, defaults: registry.ChatDefaults) -> GenerationOptions:
    """Return `options` with the model's own defaults for the flags that were not given."""
    source = click.get_current_context().get_parameter_source
    filled = options.copy()
    if source("temp") is ParameterSource.DEFAULT:
        filled["temperature"] = defaults.temperature
    if source("top_p") is ParameterSource.DEFAULT:
        filled["top_p"] = defaults.top_p
    if source("repeat_penalty") is ParameterSource.DEFAULT:
        filled["repeat_penalty"] = defaults.repeat_penalty
    return filled
