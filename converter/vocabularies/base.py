"""What every vocabulary file is read into, and what all of them must satisfy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converter.wording import quoted
from qllama.config import TokenizerKind
from qllama.errors import TokenizerError

__all__ = ["Vocabulary", "unused", "without_rowless_padding"]


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary whose blob is complete: every token is in it, with its id.

    Parameters
    ----------
    kind : str
        Of `TokenizerConfig`.
    blob : bytes
        What the `.qlm` will carry.
    ids : mapping of str to int
        Every token as the vocabulary spells it.
    special : mapping of str to int
        The control tokens among them.
    bos_id, eos_id, unk_id : int or None
        As far as the vocabulary itself names them.
    add_bos, add_eos : bool
        Whether the vocabulary's own reader adds them to a text.
    prefix_at_start_only : bool
        Of `TokenizerConfig`.
    """

    kind: TokenizerKind
    blob: bytes
    ids: Mapping[str, int]
    special: Mapping[str, int] = field(default_factory=dict)
    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    prefix_at_start_only: bool = False


def without_rowless_padding(
    where: Path, tokens: Mapping[int, str], padding: str | None, vocab_size: int
) -> dict[int, str]:
    """Return the tokens that the model has rows for.

    Parameters
    ----------
    where : Path
        The vocabulary's file, for messages.
    tokens : mapping of int to str
        Every token by its id. Fewer than rows are fine: rows are often padded.
    padding : str or None
        The padding token. It may be without a row, as nothing here uses it: many fine-tunes
        of Llama 1 and 2 add one behind the last row.
    vocab_size : int
        Rows of the model's embedding.

    Raises
    ------
    TokenizerError
        When any other token has no row.
    """
    beyond = {i: text for i, text in sorted(tokens.items()) if i >= vocab_size}
    missing = [i for i, text in beyond.items() if text != padding]
    if missing:
        raise TokenizerError(
            f"{where}: the model has {vocab_size} rows, expected one for each token, but found "
            f"{len(missing)} tokens without (the first: {quoted(beyond[missing[0]])}, token "
            f"{missing[0]}); pass the tokenizer of this very checkpoint with --tokenizer"
        )
    return {i: text for i, text in tokens.items() if i not in beyond}


def unused(tokens: Mapping[int, str]) -> dict[str, int]:
    """Return names for the ids below the highest that no token has.

    The model has rows for them, and might choose one.
    """
    last = max(tokens, default=0)
    return {f"[UNUSED_{i}]": i for i in range(last) if i not in tokens}
