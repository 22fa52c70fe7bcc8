"""How likely a model holds a given text: teacher-forced, a slab of tokens at a time.

Owns which logits are needed and how much of them is in memory at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qllama.generation.logprobs import TokenLogprob, token_logprob
from qllama.generation.session import Session

__all__ = ["score_tokens"]

# Rows of logits that are held at once: 64 MiB of a vocabulary of 128k.
_SLAB = 128


def score_tokens(
    session: Session, tokens: npt.NDArray[np.int32], first: int, n_top: int = 0
) -> list[TokenLogprob]:
    """Return how likely each token was after those before it.

    Parameters
    ----------
    session : Session
        Left holding all tokens but the last.
    tokens : int32, (n_tokens,)
    first : int
        Place of the first token that is scored, at least 1: the very first has nothing
        before it.
    n_top : int
        Have so many of the likeliest tokens named, too.
    """
    scored: list[TokenLogprob] = []
    if first > 1:  # what comes before needs no logits
        session.evaluate(tokens[: first - 1])
    for start in range(first, tokens.size, _SLAB):
        stop = min(start + _SLAB, tokens.size)
        logits = session.evaluate(tokens[: stop - 1], logits_from=start - 1).logits
        scored += [
            token_logprob(row, int(token), n_top)
            for row, token in zip(logits, tokens[start:stop], strict=True)
        ]
    return scored
