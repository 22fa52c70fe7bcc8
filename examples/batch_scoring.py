"""Answer multiple-choice questions by likelihood: python examples/batch_scoring.py model.qlm

Every choice is scored after its question; the question itself is evaluated once.
"""

from __future__ import annotations

import sys

from qllama import Llama

QUESTIONS = {
    "The capital of France is": (" Paris", " Berlin", " Madrid"),
    "Water freezes at zero degrees": (" Celsius", " Fahrenheit", " Kelvin"),
    "Two plus two equals": (" four", " five", " seven"),
}


def main(model_path: str) -> None:
    """Print each question with its choices, likeliest first."""
    with Llama(model_path, n_ctx=512) as llm:
        for question, choices in QUESTIONS.items():
            scores = {choice: llm.score(choice, question) for choice in choices}
            ranked = sorted(scores, key=lambda choice: -scores[choice])
            shown = ", ".join(f"{choice.strip()} ({scores[choice]:.2f})" for choice in ranked)
            print(f"{question}: {shown}")


if __name__ == "__main__":
    main(sys.argv[1])
