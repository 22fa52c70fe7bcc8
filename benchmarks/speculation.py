"""What guessing tokens ahead gains, and what it costs where it gains nothing; see `--help`."""

from __future__ import annotations

import calendar
import inspect
import textwrap
from http import HTTPStatus
from pathlib import Path
from pydoc_data import topics
from typing import Any

import click

from harness.document import new_document, write
from harness.options import output_option
from harness.speculation_rows import SpeculationRow, speculation_table
from qllama import Llama
from qllama.generation.results import Completion

_PROSE = textwrap.shorten(topics.topics["lambda"] + topics.topics["pass"], 900, placeholder="")
_CODE = inspect.getsource(calendar.weekday) + "\n\n" + inspect.getsource(calendar.monthrange)
_TABLE = "\n".join(f"{status.value}: {status.phrase}" for status in list(HTTPStatus)[:16])

#: Questions whose answers repeat what they are given, and such whose answers do not.
_REPEATING = {
    "copy": f"Repeat this text word for word.\n\n{_PROSE}",
    "rewrite": f"Return this text with 'function' replaced by 'procedure'.\n\n{_PROSE}",
    "code": f"Add type hints to this code and return the whole code.\n\n```python\n{_CODE}```",
    "extract": f"List the phrases of this table without their numbers.\n\n{_TABLE}",
    "records": f"Write these codes and phrases as a JSON list of objects.\n\n{_TABLE}",
}
_FREE = {
    "story": "Tell me a story about a lighthouse keeper.",
    "science": "Why is the sky blue?",
    "compare": "What are the main differences between cats and dogs?",
    "recipe": "Give me a recipe for pancakes.",
}
_RECORD = {
    "type": "object",
    "properties": {"code": {"type": "integer"}, "phrase": {"type": "string"}},
    "required": ["code", "phrase"],
}
#: What an answer must look like, by its question.
_FORMS: dict[str, dict[str, Any]] = {
    "records": {"json_schema": {"type": "array", "items": _RECORD}}
}
_SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "0.8": {"temperature": 0.8, "seed": 1},
}


@click.command(epilog="Example: python benchmarks/speculation.py models/smollm2-q4.qlm")
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-md", "--model-draft", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-n", "--predict", type=click.IntRange(min=2), default=128, show_default=True)
@click.option("-r", "--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@output_option("speculation.json")
def main(model: Path, model_draft: Path | None, predict: int, rounds: int, output: Path) -> None:
    """Answer with and without guesses in turns, and compare tokens and their speed.

    The texts are of Python's standard library. The first answer of each kind is not
    counted: it evaluates the prompt. A round whose answers differ ends the run.
    """
    rows = []
    with Llama(model, n_ctx=2048, draft_model=model_draft) as llm:
        for repeats, questions in ((True, _REPEATING), (False, _FREE)):
            for name, question in questions.items():
                prompt = llm.tokenize_chat([{"role": "user", "content": question}])
                for sampling, chosen in _SAMPLING.items():
                    how = {**chosen, **_FORMS.get(name, {})}
                    row = SpeculationRow(name, repeats, sampling)
                    for number in range(rounds + 1):
                        plain = llm.generate(prompt, max_tokens=predict, draft_max=0, **how)
                        ahead = llm.generate(prompt, max_tokens=predict, **how)
                        if number:
                            _note(row, plain, ahead)
                    rows.append(row)
                    click.echo(f"{name}, {sampling}: {row.ratio}", err=True)
    settings = {
        "model": model.name,
        "model_draft": model_draft and model_draft.name,
        "predict": predict,
        "rounds": rounds,
    }
    write(new_document("speculation", settings, {"speculation": rows}), output)
    click.echo(speculation_table(rows))


def _note(row: SpeculationRow, plain: Completion, ahead: Completion) -> None:
    if plain.token_ids != ahead.token_ids:
        raise click.ClickException(f"{row.question}: guesses changed the answer")
    row.plain.append(plain.timings.completion_rate)
    row.ahead.append(ahead.timings.completion_rate)
    row.n_tokens = ahead.timings.completion_tokens
    row.n_guessed = ahead.timings.guessed_tokens
    row.n_accepted = ahead.timings.accepted_tokens


if __name__ == "__main__":
    main()
