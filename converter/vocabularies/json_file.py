"""Vocabularies of the `tokenizers` library (`tokenizer.json`).

Owns what is changed in such a file, which is nothing at all where it is complete: the
`.qlm` then carries it byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.byte_level_bpe import AddedToken, to_json
from converter.json_files import read_json_object
from converter.tokenizer_settings import TokenizerSettings
from converter.vocabularies.base import Vocabulary, without_rowless_padding
from converter.wording import quoted
from qllama.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["read_tokenizer_json"]


def read_tokenizer_json(path: Path, settings: TokenizerSettings, vocab_size: int) -> Vocabulary:
    """Return the vocabulary of a `tokenizer.json`.

    Added tokens that other files name are put in, with their flags and ids, as
    `transformers` does; so are those that the tokenizer's roles make control tokens.

    Parameters
    ----------
    path : Path
        The file.
    settings : TokenizerSettings
        What the files beside it say. `legacy` and `add_prefix_space` are not used: they
        tell how to build what this file already holds.
    vocab_size : int
        Rows of the model's embedding.

    Raises
    ------
    TokenizerError
        When the library cannot read the file, or an added token does not fit into it.
    ConversionError
        When it is no JSON.
    """
    document = read_json_object(path)
    blob = path.read_bytes()
    backend = _load(path, blob)
    own = _own_added_tokens(path, document)
    added = _completed(path, own, settings, backend.get_vocab())
    tokens = {i: text for text, i in backend.get_vocab().items()}
    tokens |= {token.id: text for text, token in added.items()}
    kept = without_rowless_padding(path, tokens, settings.named.get("pad_token"), vocab_size)
    dropped = [text for i, text in tokens.items() if i not in kept]
    added = {text: token for text, token in added.items() if token.id in kept}
    numbered_otherwise = any(backend.token_to_id(t) != token.id for t, token in added.items())
    if added != own or dropped or numbered_otherwise or document["model"].get("dropout"):
        blob = to_json(_rewritten(path, document, added, dropped))
        backend = _load(path, blob)
    first, last = _surroundings(path, backend)
    unknown = document["model"].get("unk_token")
    return Vocabulary(
        kind="tokenizers",
        blob=blob,
        ids=backend.get_vocab(),
        special={text: token.id for text, token in added.items() if token.special},
        bos_id=first,
        eos_id=last,
        unk_id=backend.token_to_id(unknown) if isinstance(unknown, str) else None,
        add_bos=first is not None,
        add_eos=last is not None,
    )


def _load(path: Path, blob: bytes) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_buffer(blob)
    except Exception as e:  # the library raises bare Exceptions
        raise TokenizerError(
            f"{path}: the tokenizers library {tokenizers.__version__} cannot read it: "
            f"{' '.join(str(e).split())}; download the file again, or update the library"
        ) from None


def _own_added_tokens(path: Path, document: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Return the file's added tokens by their text, in the order of their ids."""
    added: dict[str, AddedToken] = {}
    for entry in sorted(document.get("added_tokens") or [], key=lambda entry: entry["id"]):
        token = AddedToken(**entry)
        if added.setdefault(token.content, token) is not token:
            raise TokenizerError(
                f"{path}: {quoted(token.content)} is both token {added[token.content].id} "
                f"and token {token.id}"
            )
    return added


def _completed(
    path: Path,
    own: Mapping[str, AddedToken],
    settings: TokenizerSettings,
    ids: Mapping[str, int],
) -> dict[str, AddedToken]:
    """Return the added tokens of this file and of the files beside it."""
    added = dict(own)
    taken = {token_id: text for text, token_id in ids.items()}
    taken |= {token.id: text for text, token in own.items()}
    for token in settings.added:
        known = added[token.content].id if token.content in added else ids.get(token.content)
        if known is None and taken.setdefault(token.id, token.content) != token.content:
            raise TokenizerError(
                f"{path}: token {token.id} is {quoted(taken[token.id])}, but the files beside it "
                f"add {quoted(token.content)} as token {token.id}; expected one of them"
            )
        added[token.content] = replace(token, id=token.id if known is None else known)
    roles = {settings.named.get(role) for role in ("bos_token", "eos_token", "unk_token")}
    for text in sorted(text for text in roles | settings.special if text is not None):
        if text in added:
            added[text] = replace(added[text], special=True)
        elif text in ids:
            added[text] = AddedToken(ids[text], text)
    return dict(sorted(added.items(), key=lambda item: item[1].id))


def _rewritten(
    path: Path,
    document: Mapping[str, Any],
    added: Mapping[str, AddedToken],
    dropped: list[str],
) -> dict[str, Any]:
    """Return the document with these added tokens, without `dropped`, and without dropout."""
    model = (
        dict(document["model"], dropout=None)
        if "dropout" in document["model"]
        else dict(document["model"])
    )
    if isinstance(model.get("vocab"), dict):
        vocab = {text: i for text, i in model["vocab"].items() if text not in dropped}
        # The library gives numbers of its own to added tokens that the vocabulary lacks.
        model["vocab"] = vocab | {text: token.id for text, token in added.items()}
    rewritten = dict(document, model=model, added_tokens=[asdict(t) for t in added.values()])
    backend = _load(path, to_json(rewritten))
    for text, token in added.items():
        if backend.token_to_id(text) != token.id:
            raise TokenizerError(
                f"{path}: the added token {quoted(text)} cannot have the id {token.id}, as "
                f"{len(model['vocab'])} tokens come before it"
            )
    return rewritten


def _surroundings(path: Path, backend: tokenizers.Tokenizer) -> tuple[int | None, int | None]:
    """Return the tokens that the file's post-processor puts before and behind every text."""
    bare = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    n_added = len(whole) - len(bare)
    for n_before in range(n_added + 1):
        if whole[n_before : n_before + len(bare)] == bare:
            before, behind = whole[:n_before], whole[n_before + len(bare) :]
            if len(before) <= 1 and len(behind) <= 1:
                return next(iter(before), None), next(iter(behind), None)
    raise TokenizerError(
        f"{path}: post_processor: expected at most one token before and one behind a text, "
        f"found {quoted([backend.id_to_token(i) for i in whole])}; not supported"
    )
