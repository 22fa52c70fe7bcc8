"""What callers say of who guesses tokens, and who does.

Owns the spellings: a model's file, an open model, a guesser of its own kind.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

from qllama.errors import TokenizerError
from qllama.format.reader import QlmFile
from qllama.generation.lookup import Guesser, PromptLookup
from qllama.generation.second_model import SecondModel

if TYPE_CHECKING:
    from typing import TypeAlias

    from qllama.api.model import OpenModel
    from qllama.tokenizer.base import Tokenizer

__all__ = ["DraftModel", "guesser_of", "n_ctx_beside"]

DraftModel: TypeAlias = "Guesser | OpenModel | str | os.PathLike[str] | None"


def n_ctx_beside(path: str | os.PathLike[str], n_ctx: int) -> int:
    """Return the context window that a model should have beside one with `n_ctx` tokens.

    Parameters
    ----------
    path : str or path
        The model's file.
    n_ctx : int
    """
    with closing(QlmFile.open(path)) as file:
        return min(n_ctx, file.config.max_position_embeddings)


def guesser_of(draft_model: Guesser | OpenModel | None, tokenizer: Tokenizer) -> Guesser:
    """Return who guesses what a model would choose.

    Parameters
    ----------
    draft_model : Guesser, OpenModel or None
        None looks up the text so far.
    tokenizer : Tokenizer
        That of the model whose tokens are guessed.

    Raises
    ------
    TokenizerError
        When the draft model has another vocabulary; names the first token that differs.
    TypeError
        When it is none of these.
    """
    from qllama.api.model import OpenModel

    if draft_model is None:
        return PromptLookup()
    if isinstance(draft_model, OpenModel):
        _check_vocabulary(draft_model, tokenizer)
        return SecondModel(draft_model._session, draft_model._lock, tokenizer.vocab_size)
    if isinstance(draft_model, Guesser):
        return draft_model
    raise TypeError(
        "draft_model: expected the path of a model, a Llama, LlamaPromptLookupDecoding or "
        f"None, found {draft_model!r}"
    )


def _check_vocabulary(draft: OpenModel, tokenizer: Tokenizer) -> None:
    other = draft._tokenizer
    where = f"draft model {draft.model_path}"
    if other.vocab_size != tokenizer.vocab_size:
        raise TokenizerError(
            f"{where}: expected the model's {tokenizer.vocab_size} tokens, found "
            f"{other.vocab_size}; a draft model must have the same vocabulary"
        )
    for token in range(tokenizer.vocab_size):
        expected, found = _text(tokenizer, token), _text(other, token)
        if expected != found:
            raise TokenizerError(
                f"{where}: expected token {token} to be {expected!r} as in the model, found "
                f"{found!r}; a draft model must have the same vocabulary"
            )


def _text(tokenizer: Tokenizer, token: int) -> str | None:
    try:
        return tokenizer.token_text(token)
    except TokenizerError:  # a hole in the vocabulary
        return None
