"""Search passages by meaning: python examples/semantic_search.py model.qlm FILE QUESTION

FILE has a passage a paragraph. A model that was trained for embeddings finds best.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from qllama import Llama


def main(model_path: str, file: str, question: str) -> None:
    """Print the three passages that are nearest to the question, nearest first."""
    passages = [p for p in Path(file).read_text(encoding="utf-8").split("\n\n") if p.strip()]
    with Llama(model_path) as llm:
        vectors = llm.embed(passages)
        (asked,) = llm.embed(question)
    nearness = vectors @ asked  # cosines: vectors have length one
    for place in np.argsort(-nearness)[:3]:
        print(f"{nearness[place]:+.3f}  {' '.join(passages[place].split())}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
