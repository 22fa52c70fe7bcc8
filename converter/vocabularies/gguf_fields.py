"""GGUF vocabularies to the tokenizer blob that a `.qlm` file carries.

Owns the reading of the `tokenizer.*` fields of a GGUF file. Knows nothing of
how the file is read, nor of its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from converter.byte_level_bpe import AddedToken, byte_level_bpe
from converter.end_of_turn import END_OF_TURN
from converter.pretokenizers import PreTokenizer, pre_tokenizer
from qllama.config import TokenizerConfig, TokenizerKind
from qllama.errors import TokenizerError
from qllama.tokenizer import load_tokenizer
from qllama.tokenizer.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    model_proto,
)

__all__ = ["tokenizer_from_gguf"]

_Value = TypeVar("_Value")

_MAX_SCORE = 3.4e38  # float32 holds it, as SentencePiece does

# Tokens that fields name; the ids are llama.cpp's where the field is absent. (Its
# default for `gpt2` is Falcon's token 11: no default is better.)
_DEFAULT_IDS: dict[str, dict[str, int]] = {
    "gpt2": {},
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
}
_NEEDED_IDS = ("bos", "eos", "eot", "eom")


def tokenizer_from_gguf(fields: Mapping[str, Any]) -> tuple[TokenizerConfig, bytes]:
    """Return the tokenizer of a GGUF file; every token keeps its id.

    Token types become: control and unknown ones special tokens, which text
    becomes only on request; user-defined ones tokens that are matched always, as
    they are spelled; all others plain vocabulary. A user-defined token that the
    file names as its BOS, EOS or end of turn is a control token.

    Parameters
    ----------
    fields : mapping
        The file's metadata, key to Python value; only `tokenizer.*` is read.

    Returns
    -------
    config : TokenizerConfig
        `eos_token_ids` begins with the file's EOS, then come its end-of-turn and
        end-of-message tokens, then control tokens known by their text to end a
        turn. `add_bos_token` is llama.cpp's default where the file does not say.
    blob : bytes
        A `tokenizer.json` for `tokenizer.ggml.model` `gpt2`, a SentencePiece
        model for `llama`. `load_tokenizer(config, blob)` has loaded it once.

    Raises
    ------
    TokenizerError
        When a field is missing, malformed or not supported; names the field.
    """
    kind = _require(fields, "tokenizer.ggml.model", str)
    if kind not in _DEFAULT_IDS:
        raise TokenizerError(
            f"tokenizer.ggml.model: expected 'gpt2' (byte-level BPE) or 'llama' "
            f"(SentencePiece), found {kind!r}; this tokenizer is not supported"
        )
    tokens = _tokens(fields)
    named = _named_ids(fields, len(tokens), _DEFAULT_IDS[kind])
    types = _token_types(fields, len(tokens), named)
    if kind == "gpt2":
        pre = pre_tokenizer(_require(fields, "tokenizer.ggml.pre", str))
        blob = _tokenizer_json(fields, tokens, types, pre)
        config = _config(fields, "tokenizers", tokens, types, named, pre.add_bos_token)
    else:
        blob = _sentencepiece(fields, tokens, types, named["unknown"] or 0)
        config = _config(fields, "sentencepiece", tokens, types, named, True)
    load_tokenizer(config, blob)
    return config, blob


def _tokens(fields: Mapping[str, Any]) -> list[str]:
    tokens = _require(fields, "tokenizer.ggml.tokens", list)
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise TokenizerError("tokenizer.ggml.tokens: expected a list of strings, not empty")
    # llama.cpp's spelling of a nameless entry; it keeps the ids after it in place.
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    first_at: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if first_at.setdefault(token, i) != i:
            raise TokenizerError(
                f"tokenizer.ggml.tokens: {token!r} is both token {first_at[token]} and token {i}"
            )
    return tokens


def _named_ids(
    fields: Mapping[str, Any], n_tokens: int, defaults: Mapping[str, int]
) -> dict[str, int | None]:
    """Return the ids of the tokens that fields name; None for one that is not there.

    A padding or unknown token outside the vocabulary occurs in the wild and
    harms nobody, as nothing here uses it.
    """
    ids: dict[str, int | None] = {}
    for name in (*_NEEDED_IDS, "unknown", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        token_id = _optional(fields, key, int, defaults.get(name, -1))
        if key in fields and name in _NEEDED_IDS and not 0 <= token_id < n_tokens:
            raise TokenizerError(f"{key}: expected 0..{n_tokens - 1}, found {token_id}")
        ids[name] = token_id if 0 <= token_id < n_tokens else None
    return ids


def _token_types(
    fields: Mapping[str, Any], n_tokens: int, named: Mapping[str, int | None]
) -> list[int]:
    types = fields.get("tokenizer.ggml.token_type")
    if types is None:
        return [NORMAL] * n_tokens
    known = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
    if not isinstance(types, list) or len(types) != n_tokens:
        found = f"{len(types)} entries" if isinstance(types, list) else repr(types)
        raise TokenizerError(
            f"tokenizer.ggml.token_type: expected {n_tokens} entries, one a token, found {found}"
        )
    for i, kind in enumerate(types):
        if kind not in known:
            raise TokenizerError(
                f"tokenizer.ggml.token_type: expected 1..6, found {kind!r} for token {i}"
            )
    ends = {named[name] for name in _NEEDED_IDS}
    return [CONTROL if kind == USER_DEFINED and i in ends else kind for i, kind in enumerate(types)]


def _tokenizer_json(
    fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], pre: PreTokenizer
) -> bytes:
    added = [
        AddedToken(i, tokens[i], special=kind != USER_DEFINED)
        for i, kind in enumerate(types)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    return byte_level_bpe(tokens, _require(fields, "tokenizer.ggml.merges", list), added, pre)


def _sentencepiece(
    fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], unknown: int
) -> bytes:
    scores = _require(fields, "tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise TokenizerError(
            f"tokenizer.ggml.scores: expected {len(tokens)} entries, found {len(scores)}"
        )
    if not all(isinstance(score, int | float) and abs(score) < _MAX_SCORE for score in scores):
        raise TokenizerError("tokenizer.ggml.scores: expected finite float32 numbers")
    # SentencePiece wants one unknown piece; Phi-3's files have 53, none of them its `<unk>`.
    types = [CONTROL if kind == UNKNOWN else kind for kind in types]
    types[unknown] = UNKNOWN
    pieces = [
        (token, float(score), kind)
        for token, score, kind in zip(tokens, scores, types, strict=True)
    ]
    return model_proto(
        pieces,
        add_dummy_prefix=_optional(fields, "tokenizer.ggml.add_space_prefix", bool, True),
        byte_fallback=BYTE in types,
    )


def _config(
    fields: Mapping[str, Any],
    kind: TokenizerKind,
    tokens: Sequence[str],
    types: Sequence[int],
    named: Mapping[str, int | None],
    add_bos_token: bool,
) -> TokenizerConfig:
    by_text = [i for i, token in enumerate(tokens) if types[i] == CONTROL and token in END_OF_TURN]
    ends = [named["eos"], named["eot"], named["eom"], *by_text]
    return TokenizerConfig(
        kind=kind,
        bos_token_id=named["bos"],
        eos_token_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        unk_token_id=named["unknown"],
        pad_token_id=named["padding"],
        add_bos_token=_optional(
            fields, "tokenizer.ggml.add_bos_token", bool, add_bos_token and named["bos"] is not None
        ),
        add_eos_token=_optional(fields, "tokenizer.ggml.add_eos_token", bool, False),
        chat_template=_optional(fields, "tokenizer.chat_template", str, "") or None,
    )


def _require(fields: Mapping[str, Any], key: str, expected: type[_Value]) -> _Value:
    if key not in fields:
        raise TokenizerError(f"{key} is missing; convert the model to GGUF again")
    return _typed(key, fields[key], expected)


def _optional(
    fields: Mapping[str, Any], key: str, expected: type[_Value], default: _Value
) -> _Value:
    return _typed(key, fields[key], expected) if key in fields else default


def _typed(key: str, value: Any, expected: type[_Value]) -> _Value:
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise TokenizerError(f"{key}: expected {expected.__name__}, found {value!r}"[:200])
    return value
