"""Records out of free text: python examples/structured_extraction.py model.qlm [FILE]

Prints one JSON object a line of FILE, each valid by the schema whatever the model says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from qllama import Llama

NOTES = """Anna Berg paid 120 euros on 2024-03-05 for a train ticket to Oslo.
On 2023-11-30, Tom Hill bought two books for 34 dollars."""
SCHEMA = {
    "type": "object",
    "properties": {
        "who": {"type": "string", "maxLength": 30},
        "date": {"type": "string", "format": "date"},
        "amount": {"type": "number", "minimum": 0},
    },
    "required": ["who", "date", "amount"],
    "additionalProperties": False,
}
QUESTION = "Copy from this note who paid, on what date, and how much, as JSON.\n\n"


def main(model_path: str, file: str | None = None) -> None:
    """Print a record for each note."""
    notes = NOTES if file is None else Path(file).read_text(encoding="utf-8")
    with Llama(model_path, n_ctx=1024) as llm:
        for note in filter(str.strip, notes.splitlines()):
            messages = [{"role": "user", "content": QUESTION + note}]
            answer = llm.chat(messages, json_schema=SCHEMA, max_tokens=200, temperature=0)
            # Cut off at max_tokens is the one way not to be whole.
            print(json.loads(answer) if answer.finish_reason == "stop" else f"cut off: {answer}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
