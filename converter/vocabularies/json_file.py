"""Vocabularies of the `tokenizers` library (`tokenizer.json`).

Owns what is changed in such a file, which is nothing at all where it is complete: the
`.qlm` then carries it byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.byte_level_bpe import AddedToken, to_json
from converter.json_files import read_json_object
from converter.small_files import read_small
from converter.tokenizer_settings import TokenizerSettings
from converter.vocabularies.base import Vocabulary, unused, without_rowless_padding
from converter.wording import quoted
from qllama.errors import TokenizerError
from qllama.tokenizer.foreign import failures_told

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
    if not isinstance(document.get("model"), dict):
        raise TokenizerError(
            f"{path}: expected a tokenizer.json, with an object `model`; found the keys "
            f"{quoted(list(document))}; save one with transformers"
        )
    blob = read_small(path)
    backend = _load(path, blob)
    ids = backend.get_vocab(with_added_tokens=False)
    own = _own_added_tokens(path, document, ids)
    added = _completed(path, own, settings, ids)
    tokens = {i: text for text, i in ids.items()}
    tokens |= {token.id: text for text, token in added.items()}
    kept = without_rowless_padding(path, tokens, settings.named.get("pad_token"), vocab_size)
    added = {text: token for text, token in added.items() if token.id in kept}
    vocab = {text: i for i, text in kept.items()} | unused(kept)
    is_complete = added == own and len(vocab) == len(tokens)
    numbered_as_told = all(backend.token_to_id(t) == token.id for t, token in added.items())
    if not is_complete or not numbered_as_told or document["model"].get("dropout"):
        blob = to_json(_rewritten(document, added, vocab))
        backend = _load(path, blob)
        _check_numbers(path, backend, vocab)
    first, last = _surroundings(path, document.get("post_processor"))
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

    what = f"{path}: the tokenizers library {tokenizers.__version__} cannot read it"
    with failures_told(what, "download the file again, or update the library"):
        return tokenizers.Tokenizer.from_buffer(blob)


def _own_added_tokens(
    path: Path, document: Mapping[str, Any], ids: Mapping[str, int]
) -> dict[str, AddedToken]:
    """Return the file's added tokens by their text, in the order of their ids.

    One that is in the vocabulary too has the id that it has there, as in the library.
    """
    added: dict[str, AddedToken] = {}
    taken = {token_id: text for text, token_id in ids.items()}
    for entry in sorted(document.get("added_tokens") or [], key=lambda entry: entry["id"]):
        token = AddedToken(**{f.name: entry[f.name] for f in fields(AddedToken)})
        token = replace(token, id=ids.get(token.content, token.id))
        if added.setdefault(token.content, token).id != token.id:
            raise TokenizerError(
                f"{path}: {quoted(token.content)} is both token {added[token.content].id} "
                f"and token {token.id}; expected one of them"
            )
        if taken.setdefault(token.id, token.content) != token.content:
            raise TokenizerError(
                f"{path}: {quoted(taken[token.id])} and {quoted(token.content)} are both token "
                f"{token.id}; expected one of them"
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
    document: Mapping[str, Any], added: Mapping[str, AddedToken], vocab: Mapping[str, int]
) -> dict[str, Any]:
    """Return the document with these tokens, and without dropout."""
    model = dict(document["model"])
    if "dropout" in model:
        model["dropout"] = None
    if isinstance(model.get("vocab"), dict):
        # Added tokens too: the library gives numbers of its own to those that are not here.
        model["vocab"] = vocab
    return dict(document, model=model, added_tokens=[asdict(token) for token in added.values()])


def _check_numbers(path: Path, backend: tokenizers.Tokenizer, vocab: Mapping[str, int]) -> None:
    """Vocabularies that are lists give their tokens no ids but their places."""
    for text, token_id in vocab.items():
        if backend.token_to_id(text) != token_id:
            raise TokenizerError(
                f"{path}: {quoted(text)} cannot have the id {token_id}, as the tokens before it "
                "are fewer"
            )


def _surroundings(path: Path, post: Any) -> tuple[int | None, int | None]:
    """Return the tokens that the file's post-processor puts before and behind every text.

    Read, and not tried out: the library panics over a damaged one.
    """
    before: list[int] = []
    behind: list[int] = []
    steps = post.get("processors", []) if _type_of(post) == "Sequence" else [post]
    try:
        for step in steps:
            if _type_of(step) == "TemplateProcessing":
                tokens = {text: token["ids"] for text, token in step["special_tokens"].items()}
                place = before
                for part in step["single"]:
                    if "Sequence" in part:
                        place = behind
                    else:
                        place += tokens[part["SpecialToken"]["id"]]
            elif _type_of(step) in ("BertProcessing", "RobertaProcessing"):
                before.append(step["cls"][1])
                behind.append(step["sep"][1])
            elif _type_of(step) not in (None, "ByteLevel"):
                raise ValueError(_type_of(step))
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise TokenizerError(
            f"{path}: post_processor: expected one that puts tokens around a text: "
            f"{type(e).__name__}: {quoted(str(e))}; download the file again"
        ) from None
    if len(before) > 1 or len(behind) > 1:
        raise TokenizerError(
            f"{path}: post_processor: expected at most one token before and one behind a text, "
            f"found the ids {quoted(before)} and {quoted(behind)}; not supported"
        )
    return next(iter(before), None), next(iter(behind), None)


def _type_of(step: Any) -> Any:
    return step.get("type") if isinstance(step, dict) else None
