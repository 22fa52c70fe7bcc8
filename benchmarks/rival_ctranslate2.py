"""CTranslate2 behind llama-bench's options and answers, as a rival of side_by_side.py.

    pip install ctranslate2
    python benchmarks/side_by_side.py --pair model.qlm=DIRECTORY/model.bin \
        --rival "CTranslate2=python benchmarks/rival_ctranslate2.py"

DIRECTORY is what `ct2-transformers-converter --quantization int8` writes. Imports nothing
of qllama: CTranslate2 may live in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import ctranslate2  # type: ignore[import-not-found]

_WARM_UP_TOKENS = 8


def main() -> None:
    """Run prompts and answers of the wished lengths and print llama-bench's JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", required=True, type=Path, help="model.bin of a converted model")
    parser.add_argument("-t", required=True, type=int, help="threads")
    parser.add_argument("-p", required=True, help="lengths of prompts; 0 for none")
    parser.add_argument("-n", required=True, help="lengths of answers; 0 for none")
    parser.add_argument("-r", required=True, type=int, help="repetitions")
    parser.add_argument("-d", choices=["0"], default="0", help="depth: none")
    parser.add_argument("-o", choices=["json"], default="json")
    options = parser.parse_args()
    vocabulary = json.loads((options.m.parent / "vocabulary.json").read_text(encoding="utf-8"))
    generator = ctranslate2.Generator(
        str(options.m.parent), device="cpu", compute_type="int8", intra_threads=options.t
    )

    def seconds(n_prompt: int, n_gen: int) -> float:
        prompt = [vocabulary[(977 * i) % len(vocabulary)] for i in range(n_prompt)]
        start = time.perf_counter()
        (result,) = generator.generate_batch(
            [prompt], max_length=n_gen, min_length=n_gen, include_prompt_in_result=False
        )
        assert len(result.sequences_ids[0]) == n_gen
        return time.perf_counter() - start

    rows = []
    for n_prompt in (int(word) for word in options.p.split(",") if word != "0"):
        seconds(n_prompt, 1)
        # The first token of the answer costs no step of its own.
        rows.append((n_prompt, 0, [n_prompt / seconds(n_prompt, 1) for _ in range(options.r)]))
    for n_gen in (int(word) for word in options.n.split(",") if word != "0"):
        seconds(1, _WARM_UP_TOKENS)
        speeds = [n_gen / (seconds(1, n_gen + 1) - seconds(1, 1)) for _ in range(options.r)]
        rows.append((0, n_gen, speeds))
    answer = [
        {
            "n_prompt": n_prompt,
            "n_gen": n_gen,
            "n_depth": 0,
            "samples_ts": samples,
            "model_size": options.m.stat().st_size,
            "build_commit": ctranslate2.__version__,
        }
        for n_prompt, n_gen, samples in rows
    ]
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
