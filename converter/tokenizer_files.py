"""The tokenizer of a checkpoint: from a directory or a file to the blob of a `.qlm`.

Owns which file counts, and the record of special tokens put together from all of them.
The formats are read by `converter.vocabularies`. See docs/conversion.md, "Tokenizers".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.end_of_turn import END_OF_TURN
from converter.tokenizer_settings import TokenizerSettings, read_settings
from converter.vocabularies.base import Vocabulary
from converter.vocabularies.json_file import read_tokenizer_json
from converter.vocabularies.sentencepiece_file import read_sentencepiece
from converter.vocabularies.tiktoken_file import is_tiktoken, read_tiktoken
from converter.wording import quoted
from qllama.config import TokenizerConfig
from qllama.errors import ConversionError, TokenizerError
from qllama.tokenizer import load_tokenizer

__all__ = ["has_tokenizer", "tokenizer_from_path"]

_VOCABULARIES = ("tokenizer.json", "tokenizer.model")
# Meta begins every text of Llama 3 with it; the first tokenizer.json files, and those of many
# fine-tunes made from them, forgot to.
_BEGINS_EVERY_TEXT = "<|begin_of_text|>"
_SAVE = "save a tokenizer.json with transformers (AutoTokenizer...save_pretrained)"


def has_tokenizer(directory: Path) -> bool:
    """Whether a vocabulary that can be read lies in a directory."""
    return any((directory / name).is_file() for name in _VOCABULARIES)


def tokenizer_from_path(
    path: Path, vocab_size: int, declared: Mapping[str, Any]
) -> tuple[TokenizerConfig, bytes]:
    """Return the tokenizer of a checkpoint; every token keeps its id.

    Parameters
    ----------
    path : Path
        A directory, whose `tokenizer.json` goes before its `tokenizer.model`; or one such
        file, SentencePiece or tiktoken. The files beside it are read too:
        `tokenizer_config.json` and its like.
    vocab_size : int
        Rows of the model's embedding; more of them than tokens are fine.
    declared : mapping
        The values of the model's `config.json`, or what stands for it.

    Returns
    -------
    config : TokenizerConfig
        `eos_token_ids` begins with the tokenizer's own `eos_token`; then come those of
        `generation_config.json`, of the model's config, and control tokens known by their
        text to end a turn.
    blob : bytes
        A `tokenizer.json` or a SentencePiece model; `load_tokenizer(config, blob)` has
        loaded it once.

    Raises
    ------
    TokenizerError
        When there is no tokenizer, or one that is malformed or not supported.
    ConversionError
        When the path or one of the files cannot be read.
    """
    if not path.exists():
        raise ConversionError(f"{path}: no such file or directory; expected a tokenizer")
    file = _vocabulary_file(path) if path.is_dir() else path
    settings = read_settings(file.parent, declared)
    vocabulary = _read(file, settings, vocab_size, declared)
    config = _config(file, vocabulary, settings)
    try:
        load_tokenizer(config, vocabulary.blob)
    except TokenizerError as e:
        raise TokenizerError(f"{file}: {e}") from None
    return config, vocabulary.blob


def _vocabulary_file(directory: Path) -> Path:
    """Return the directory's vocabulary.

    Meta's download script for Llama 1 and 2 puts one `tokenizer.model` above the
    directories of all models.
    """
    places = [directory, directory.resolve().parent] if _is_meta(directory) else [directory]
    for place in places:
        for name in _VOCABULARIES:
            if (place / name).is_file():
                return place / name
    others = [name for name in ("tekken.json", "vocab.json") if (directory / name).is_file()]
    found = f"found only {' and '.join(others)}; {_SAVE}" if others else "found neither"
    raise TokenizerError(
        f"{directory}: expected {' or '.join(_VOCABULARIES)}, {found}, or pass one with --tokenizer"
    )


def _is_meta(directory: Path) -> bool:
    return (directory / "params.json").is_file()


def _read(
    file: Path, settings: TokenizerSettings, vocab_size: int, declared: Mapping[str, Any]
) -> Vocabulary:
    """Read a vocabulary in the format that its first bytes show."""
    try:
        with file.open("rb") as stream:
            beginning = stream.read(4096)
    except OSError as e:
        raise ConversionError(f"{file}: cannot be read: {e.strerror or e}") from e
    if beginning.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{file}: is a Git LFS pointer; fetch the file with `git lfs pull`")
    if beginning.lstrip().startswith(b"{"):
        return read_tokenizer_json(file, settings, vocab_size)
    if is_tiktoken(beginning):
        return read_tiktoken(file, settings, vocab_size, declared)
    return read_sentencepiece(file, settings, vocab_size)


def _config(file: Path, vocabulary: Vocabulary, settings: TokenizerSettings) -> TokenizerConfig:
    bos = _named(file, vocabulary, settings, "bos_token", vocabulary.bos_id)
    if bos is None and "bos_token" not in settings.named:
        bos = settings.bos_id if settings.bos_id in vocabulary.ids.values() else None
    eos = _named(file, vocabulary, settings, "eos_token", vocabulary.eos_id)
    adds_bos = vocabulary.add_bos or settings.named.get("bos_token") == _BEGINS_EVERY_TEXT
    adds_bos = adds_bos if settings.add_bos_token is None else settings.add_bos_token
    adds_eos = vocabulary.add_eos if settings.add_eos_token is None else settings.add_eos_token
    by_text = [vocabulary.special[text] for text in END_OF_TURN if text in vocabulary.special]
    ends = [eos, *_checked_ends(vocabulary, settings), *by_text]
    return TokenizerConfig(
        kind=vocabulary.kind,
        bos_token_id=bos,
        eos_token_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        unk_token_id=_optional(vocabulary, settings, "unk_token", vocabulary.unk_id),
        pad_token_id=_optional(vocabulary, settings, "pad_token", settings.pad_id),
        # transformers, too, adds none where the flag is set but no such token is.
        add_bos_token=adds_bos and bos is not None,
        add_eos_token=adds_eos and eos is not None,
        chat_template=settings.chat_template,
        prefix_at_start_only=vocabulary.prefix_at_start_only,
    )


def _named(
    file: Path, vocabulary: Vocabulary, settings: TokenizerSettings, role: str, default: int | None
) -> int | None:
    """Return the id of a token that is used; `default` where nothing names it."""
    text = settings.named.get(role)
    if text is None:
        return None if role in settings.named else default
    if text not in vocabulary.ids:
        raise TokenizerError(
            f"{file.parent}: {role}: expected a token of {file.name}, found {quoted(text)}"
        )
    return vocabulary.ids[text]


def _optional(
    vocabulary: Vocabulary, settings: TokenizerSettings, role: str, default: int | None
) -> int | None:
    """Return the id of a token that nothing here uses, if the vocabulary has it."""
    text = settings.named.get(role)
    if text is not None:
        return vocabulary.ids.get(text)
    return default if default in vocabulary.ids.values() else None


def _checked_ends(vocabulary: Vocabulary, settings: TokenizerSettings) -> list[int]:
    known = set(vocabulary.ids.values())
    for where, token_id in settings.end_ids:
        if token_id not in known:
            raise TokenizerError(
                f"{where}: expected a token of the vocabulary, 0..{max(known)}, found {token_id}"
            )
    return [token_id for _, token_id in settings.end_ids]
