"""How byte-level BPE tokenizers cut text before merging, by GGUF name.

GGUF carries only a name (`tokenizer.ggml.pre`); this table gives what each name
stands for in the terms of a `tokenizer.json`. Owns that table. Names are
llama.cpp's (`llama_vocab::impl::load`, `llm_tokenizer_bpe` in
`src/llama-vocab.cpp`); the pipelines are the ones that the named model's own
`tokenizer.json` declares, which llama.cpp rewrites for its regex engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qllama.errors import TokenizerError

__all__ = ["PreTokenizer", "pre_tokenizer"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """The part of a `tokenizer.json` that a pre-tokenizer's name stands for.

    Parameters
    ----------
    steps : tuple of dict
        Pre-tokenizers, applied one after another.
    normalizer : dict or None
        Applied to plain text before the steps.
    ignore_merges : bool
        A piece that is a token as a whole is not built by merges.
    add_bos_token : bool
        llama.cpp's default where the GGUF does not say.
    """

    steps: tuple[Json, ...]
    normalizer: Json | None = None
    ignore_merges: bool = False
    add_bos_token: bool = False


def _byte_level(use_regex: bool) -> Json:
    """Return the step to the byte alphabet; `use_regex` cuts by GPT-2's pattern first."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> Json:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _cl100k_like(digits: str) -> Json:
    """Return tiktoken's cl100k pattern, as Llama 3 and Qwen 2 have it, but for `digits`."""
    return _split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
        r"|[^\r\n\p{L}\p{N}]?\p{L}+"
        rf"|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+"
        r"|\s+(?!\S)"
        r"|\s+"
    )


_LLAMA_3 = PreTokenizer(
    (_cl100k_like(r"\p{N}{1,3}"), _byte_level(use_regex=False)),
    ignore_merges=True,
    add_bos_token=True,
)

_PRE_TOKENIZERS = {
    "default": PreTokenizer(
        (
            _split(r"[\p{P}\$\+<=>\^~\|]+"),
            _split(
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            ),
            _split(r"\p{N}+"),
            _split("[0-9][0-9][0-9]"),
            _byte_level(use_regex=False),
        )
    ),
    "gpt-2": PreTokenizer((_byte_level(use_regex=True),)),
    "llama-bpe": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "llama3": _LLAMA_3,
    "qwen2": PreTokenizer(
        (_cl100k_like(r"\p{N}"), _byte_level(use_regex=False)),
        normalizer={"type": "NFC"},
    ),
    "smollm": PreTokenizer(
        ({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True))
    ),
}


def pre_tokenizer(name: str) -> PreTokenizer:
    """Return what the GGUF field `tokenizer.ggml.pre` stands for.

    Raises
    ------
    TokenizerError
        When the name is not known: guessing would give wrong ids in silence.
    """
    known = _PRE_TOKENIZERS.get(name)
    if known is None:
        raise TokenizerError(
            f"tokenizer.ggml.pre: {name!r} is not supported; known are {', '.join(_PRE_TOKENIZERS)}"
        )
    return known
