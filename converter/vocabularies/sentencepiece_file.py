"""SentencePiece models (`tokenizer.model`), with the tokens that other files add to them.

Owns the merging of both into one model. Everything else of the model stays as it is: its
scores, its normalization, its choice between BPE and unigram.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from converter.byte_level_bpe import AddedToken
from converter.small_files import read_small
from converter.tokenizer_settings import TokenizerSettings
from converter.vocabularies.base import Vocabulary, unused, without_rowless_padding
from converter.wording import quoted
from qllama.errors import TokenizerError
from qllama.tokenizer.sentencepiece_proto import (
    BYTE,
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    read_pieces,
    with_dummy_prefix,
    with_pieces,
)

__all__ = ["read_sentencepiece"]


def read_sentencepiece(path: Path, settings: TokenizerSettings, vocab_size: int) -> Vocabulary:
    """Return the vocabulary of a SentencePiece model.

    Added tokens become pieces: control ones where they are special, else user-defined.

    Parameters
    ----------
    path : Path
        The model.
    settings : TokenizerSettings
        What the files beside it say.
    vocab_size : int
        Rows of the model's embedding.

    Raises
    ------
    TokenizerError
        When the file is damaged, or an added token does not fit into it.
    """
    import sentencepiece

    model = read_small(path)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        pieces = read_pieces(model)
    except (RuntimeError, ValueError, IndexError) as e:
        raise TokenizerError(
            f"{path}: expected a SentencePiece model, a tiktoken vocabulary or a tokenizer.json: "
            f"{' '.join(str(e).split())}; download the file again"
        ) from None
    added = _known_roles(settings, {text: i for i, (text, _) in enumerate(pieces)})
    tokens = {i: text for i, (text, _) in enumerate(pieces)}
    tokens |= {token.id: token.content for token in added}
    tokens = without_rowless_padding(path, tokens, settings.named.get("pad_token"), vocab_size)
    changes = _changes(path, pieces, [token for token in added if token.id in tokens])
    if changes:
        model = with_pieces(model, changes)
    if settings.add_prefix_space is False:
        model = with_dummy_prefix(model, False)
    final = [*pieces, *(("", UNUSED) for i in changes if i >= len(pieces))]
    for i, change in changes.items():
        final[i] = change
    return Vocabulary(
        kind="sentencepiece",
        blob=model,
        ids={text: i for i, (text, _) in enumerate(final)},
        special={text: i for i, (text, kind) in enumerate(final) if kind in (CONTROL, UNKNOWN)},
        bos_id=_id(processor.bos_id()),
        eos_id=_id(processor.eos_id()),
        unk_id=_id(processor.unk_id()),
        # Meta's own code and Hugging Face's class for these models begin every text so.
        add_bos=processor.bos_id() >= 0,
        prefix_at_start_only=settings.legacy is False,
    )


def _known_roles(settings: TokenizerSettings, ids: Mapping[str, int]) -> Sequence[AddedToken]:
    """Return the added tokens, and the model's own pieces that are control tokens by their role."""
    added = {token.id: token for token in settings.added}
    roles = {settings.named.get("bos_token"), settings.named.get("eos_token")} | settings.special
    for text in sorted(text for text in roles if text is not None):
        if text in ids:
            added.setdefault(ids[text], AddedToken(ids[text], text))
    return [added[token_id] for token_id in sorted(added)]


def _changes(
    path: Path, pieces: Sequence[tuple[str, int]], added: Sequence[AddedToken]
) -> dict[int, tuple[str, int]]:
    """Return the pieces that differ from the model's, or come after them."""
    changes: dict[int, tuple[str, int]] = {}
    at = {text: i for i, (text, _) in enumerate(pieces)}
    for token in added:
        if token.lstrip or token.rstrip or token.single_word:
            raise TokenizerError(
                f"{path.parent}: the added token {quoted(token.content)} takes white space along "
                "or is a single word, which a SentencePiece model cannot express; save a "
                "tokenizer.json beside it with transformers"
            )
        if at.setdefault(token.content, token.id) != token.id:
            raise TokenizerError(
                f"{path}: {quoted(token.content)} is token {at[token.content]}, but an added "
                f"token {token.id} is spelled alike; expected one of them"
            )
        kind = CONTROL if token.special else USER_DEFINED
        if token.id >= len(pieces):
            changes[token.id] = (token.content, kind)
        elif pieces[token.id][1] in (BYTE, UNKNOWN):
            continue  # without these the model cannot spell what it does not know
        elif pieces[token.id] != (token.content, kind):
            changes[token.id] = (token.content, kind)
    # Ids go by the order of the pieces, so a hole takes one too.
    holes = unused({i: text for text, i in at.items()})
    changes |= {i: (text, UNUSED) for text, i in holes.items()}
    return changes


def _id(token_id: int) -> int | None:
    """SentencePiece says -1 for a token that the model does not have."""
    return token_id if token_id >= 0 else None
