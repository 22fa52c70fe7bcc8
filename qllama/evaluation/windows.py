"""A text as windows of tokens, cut as llama.cpp's `llama-perplexity` cuts it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qllama.errors import EvaluationError
from qllama.tokenizer import Tokenizer

__all__ = ["Windows", "check_same_tokens", "cut"]


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one text, one after the other.

    Parameters
    ----------
    tokens : int32, (n_windows, n_ctx)
        What a model reads: each begins with BOS, where the model wants texts to.
    """

    tokens: npt.NDArray[np.int32]

    @property
    def first(self) -> int:
        """Place in each window of the first token whose successor is scored: the middle."""
        return int(self.tokens.shape[1]) // 2


def cut(
    text: str, where: str, tokenizer: Tokenizer, n_ctx: int, max_windows: int | None = None
) -> Windows:
    """Cut a text into windows; what is left at its end is dropped.

    Parameters
    ----------
    text : str
        Control tokens that are spelled in it are plain text. A newline at its end is dropped.
    where : str
        The text's name in errors.
    tokenizer : Tokenizer
    n_ctx : int
        Tokens of a window.
    max_windows : int, optional
        How many to take, from the front; by default all.

    Raises
    ------
    EvaluationError
        When the text has not the tokens of two windows, which the method takes.
    """
    ids = tokenizer.encode(
        text.removesuffix("\n"), add_special=True, parse_special=False, add_eos=False
    )
    if len(ids) < 2 * n_ctx:
        raise EvaluationError(
            f"{where}: expected at least {2 * n_ctx} tokens, two windows of {n_ctx}, found "
            f"{len(ids)}; give a longer text or a smaller -c"
        )
    n_windows = min(len(ids) // n_ctx, max_windows or len(ids))
    tokens = np.array(ids[: n_windows * n_ctx], np.int32).reshape(n_windows, n_ctx)
    bos = tokenizer.config.bos_token_id
    if tokenizer.config.add_bos_token and bos is not None:
        tokens[:, 0] = bos
    return Windows(tokens)


def check_same_tokens(name: str, ours: Windows, base_name: str, base: Windows) -> None:
    """Check that two models read the same tokens: probabilities are compared token by token.

    Parameters
    ----------
    name, base_name : str
        What errors call the models.
    ours, base : Windows
        The same text, cut alike.

    Raises
    ------
    EvaluationError
        When their vocabularies are not the same.
    """
    a, b = ours.tokens.ravel(), base.tokens.ravel()
    n = min(a.size, b.size)
    differs = np.append(a[:n] != b[:n], a.size != b.size)
    if differs.any():
        raise EvaluationError(
            f"{base_name}: expected the vocabulary of {name}, but from token "
            f"{differs.argmax() + 1} on they read the text as different tokens; "
            "choose two conversions of one model"
        )
