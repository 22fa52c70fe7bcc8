"""Options that several commands share, spelled as llama.cpp spells them.

Each decorator adds options to a click command and hands the command one tidy
value. Knows no model and no engine.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qllama.cli.completion import complete_model

if TYPE_CHECKING:
    from qllama.generation.generator import GenerationOptions

__all__ = [
    "DEFAULT_WEIGHT_TYPE",
    "SOURCE_FORMATS",
    "WEIGHT_TYPES",
    "Diagnostics",
    "chat_template_option",
    "debug_option",
    "file_option",
    "generation_options",
    "json_option",
    "model_argument",
    "source_options",
    "text_windows_options",
    "verbose_option",
    "weight_type",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

WEIGHT_TYPES = ("q4", "q4-small", "q8", "q5", "q6", "q4_0", "q8_0", "f16", "bf16", "f32")
DEFAULT_WEIGHT_TYPE = "q4"
SOURCE_FORMATS = ("gguf", "huggingface", "pytorch", "meta", "mindspore")
weight_type = click.Choice(WEIGHT_TYPES, case_sensitive=False)


@dataclass(slots=True)
class Diagnostics:
    """What the error edge must know after a command has failed."""

    debug: bool = False


def _parse_logit_bias(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[int, float]:
    """Turn `15043+1` and its like into token id and bias, as llama.cpp does."""
    biases = {}
    for value in values:
        match = re.fullmatch(r"(\d+)(-inf|[+-](?:\d+(?:\.\d*)?|\.\d+))", value)
        if match is None:
            raise click.BadParameter(
                f"expected TOKEN_ID+BIAS or TOKEN_ID-BIAS, found {value!r}", ctx, param
            )
        biases[int(match[1])] = float(match[2])
    return biases


def _store_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    diagnostics = ctx.find_object(Diagnostics)
    if value and diagnostics is not None:
        diagnostics.debug = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_store_debug,
    help="Show the traceback when the command fails.",
)

verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Print timings to stderr after each answer."
)


file_option = click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the text from FILE; - reads stdin.",
)

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one line of JSON instead: text, finish reason, token counts, seed, timings.",
)

chat_template_option = click.option(
    "--chat-template",
    "--chat-template-file",
    "chat_template",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Jinja file that turns messages into the prompt.  [default: the model's template]",
)


def model_argument(command: _Command) -> _Command:
    """Give `command` MODEL as first argument or as -m/--model; it receives `model`."""

    @click.argument("model", required=False, shell_complete=complete_model)
    @click.option(
        "-m",
        "--model",
        "model_option",
        metavar="MODEL",
        shell_complete=complete_model,
        help="The same as the argument MODEL.  [default: smollm2-135m, fetched on first use]",
    )
    @functools.wraps(command)
    def wrapper(*args: Any, model: str | None, model_option: str | None, **kwargs: Any) -> Any:
        if model is not None and model_option is not None:
            raise click.UsageError(f"MODEL is given twice: {model!r} and -m {model_option!r}.")
        return command(*args, model=model if model is not None else model_option, **kwargs)

    return wrapper  # type: ignore[return-value]


def text_windows_options(command: _Command) -> _Command:
    """Give `command` a text and how it is cut; it receives `file`, `ctx_size` and `chunks`."""
    for option in (
        click.option(
            "--chunks",
            type=click.IntRange(min=1),
            metavar="N",
            help="Windows to read.  [default: all of the text]",
        ),
        click.option(
            "-c",
            "--ctx-size",
            # Fewer would leave a window less than the two scores that an error takes.
            type=click.IntRange(min=8),
            default=512,
            show_default=True,
            metavar="N",
            help="Tokens of a window.",
        ),
        click.option(
            "-f",
            "--file",
            type=click.Path(path_type=Path),
            required=True,
            metavar="FILE",
            help="The text, UTF-8.",
        ),
    ):
        command = option(command)
    return command


def source_options(command: _Command) -> _Command:
    """Give `command` what a user may say of a checkpoint.

    It receives `source_format`, `config`, `tokenizer`, `rope_layout` and `fused_layout`, None
    where not given.
    """
    for option in (
        click.option(
            "--fused-layout",
            type=click.Choice(("grouped", "stacked"), case_sensitive=False),
            help="Row order of MindFormers' fused matrices, which no file tells: grouped by "
            "head since its version 1.4, stacked before.  [default: none; such files need it]",
        ),
        click.option(
            "--rope-layout",
            type=click.Choice(("half-split", "interleaved"), case_sensitive=False),
            help="Row order of q and k, where the checkpoint does not tell: half-split as in "
            "Hugging Face's, interleaved as in Meta's.  [default: half-split]",
        ),
        click.option(
            "--tokenizer",
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="Tokenizer file, or a directory that has one.  [default: the checkpoint's own]",
        ),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Hyperparameters: config.json, params.json or a MindFormers YAML.  "
            "[default: the checkpoint's own]",
        ),
        click.option(
            "--from",
            "source_format",
            type=click.Choice(SOURCE_FORMATS, case_sensitive=False),
            help="Format of the checkpoint.  [default: found out]",
        ),
    ):
        command = option(command)
    return command


def _number(flag: str, default: float, text: str, **limits: Any) -> Callable[[_Command], _Command]:
    """Return the option `flag`; an integer or a real number as `default` is one."""
    kind: Any = click.FLOAT
    if isinstance(default, int):
        kind = click.IntRange(**limits)
    elif limits:
        kind = click.FloatRange(**limits)
    return click.option(
        flag,
        type=kind,
        default=default,
        show_default=True,
        metavar="N" if isinstance(default, int) else "X",
        help=text,
    )


def generation_options(command: _Command) -> _Command:
    """Give `command` -n, -s, --stop and the sampler's flags; it receives `options`."""

    @click.option(
        "-n",
        "--predict",
        "--n-predict",
        type=click.IntRange(min=-1),
        default=-1,
        show_default=True,
        metavar="N",
        help="Most tokens to generate; -1 is until the model ends or the context is full.",
    )
    @click.option(
        "-s",
        "--seed",
        type=click.IntRange(min=-1),
        default=-1,
        show_default=True,
        metavar="N",
        help="Seed of the sampler; -1 is a new one each time.",
    )
    @_number("--temp", 0.8, "Temperature; 0 always takes the likeliest token.", min=0.0)
    @_number("--top-k", 40, "Sample among the N likeliest tokens; 0 is all.", min=0)
    @_number("--top-p", 0.95, "Sample among the likeliest tokens that sum to X.", min=0, max=1)
    @_number("--min-p", 0.05, "Drop tokens less likely than X times the likeliest.", min=0, max=1)
    @_number("--repeat-penalty", 1.0, "Penalty of recent tokens; 1 is none.", min=0, min_open=True)
    @_number("--repeat-last-n", 64, "How many tokens back count; 0 none, -1 all.", min=-1)
    @_number("--presence-penalty", 0.0, "Subtracted from each token used lately.")
    @_number("--frequency-penalty", 0.0, "Subtracted once for each time it was used lately.")
    @click.option(
        "-l",
        "--logit-bias",
        multiple=True,
        callback=_parse_logit_bias,
        metavar="ID(+/-)BIAS",
        help="Add BIAS to a token's logit, as 15043+1; -inf forbids it. May be given again.",
    )
    @click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="End the answer before TEXT. May be given again.",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any,
        predict: int,
        seed: int,
        temp: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repeat_penalty: float,
        repeat_last_n: int,
        presence_penalty: float,
        frequency_penalty: float,
        logit_bias: dict[int, float],
        stop: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        options: GenerationOptions = {
            "max_tokens": predict,
            "temperature": temp,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "repeat_last_n": repeat_last_n,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "logit_bias": logit_bias,
            "stop": stop,
            "seed": seed,
        }
        return command(*args, options=options, **kwargs)

    return wrapper  # type: ignore[return-value]
