"""Writes golden_smollm2.json: token ids of TEXTS by llama.cpp's own tokenizer.

    python tests/tokenizer/make_golden.py GGUF LLAMA_TOKENIZE ORIGIN

GGUF is SmolLM2-135M-Instruct's, LLAMA_TOKENIZE the program `llama-tokenize`,
ORIGIN says where its source came from.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from tokenizer_texts import TEXTS


def ids_by_llamacpp(program: str, gguf: str, text: str, *, parse_special: bool) -> list[int]:
    """Token ids of `text`, without BOS."""
    options = ["--stdin", "--ids", "--log-disable", "--no-escape", "--no-bos"]
    if not parse_special:
        options.append("--no-parse-special")
    command = [program, "-m", gguf, *options]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    return ast.literal_eval(done.stdout.decode().strip())


def main(gguf: str, program: str, origin: str) -> None:
    """Write the file beside this script."""
    golden = {
        "made_by": "tests/tokenizer/make_golden.py with llama-tokenize of llama.cpp",
        "llamacpp": origin,
        "gguf_sha256": hashlib.sha256(Path(gguf).read_bytes()).hexdigest(),
        "cases": [
            {
                "text": text,
                "parsed": ids_by_llamacpp(program, gguf, text, parse_special=True),
                "plain": ids_by_llamacpp(program, gguf, text, parse_special=False),
            }
            for text in TEXTS
        ],
    }
    path = Path(__file__).with_name("golden_smollm2.json")
    cases = ",\n".join(json.dumps(case) for case in golden.pop("cases"))
    head = json.dumps(golden, indent=1)[:-2]
    path.write_text(f'{head},\n "cases": [\n{cases}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
