"""Two conversations in one event loop: python examples/async_chat.py model.qlm

Pieces are printed as they come, and the loop stays free for other work meanwhile.
"""

from __future__ import annotations

import asyncio
import sys

from qllama import Llama

QUESTIONS = ("Name a river.", "Name a mountain.")


async def ask(llm: Llama, question: str) -> str:
    """Print the answer's pieces with the question that they belong to; return the answer."""
    answer = ""
    messages = [{"role": "user", "content": question}]
    async for piece in llm.achat(messages, max_tokens=16, temperature=0):
        print(f"{question:>18} | {piece!r}")
        answer += piece
    return answer


async def main(model_path: str) -> None:
    """Ask all questions at once."""
    with Llama(model_path, n_ctx=512) as llm:
        for answer in await asyncio.gather(*(ask(llm, question) for question in QUESTIONS)):
            print(answer)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
