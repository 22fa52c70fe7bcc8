"""Small checkpoint directories, as far as tokenizers are concerned."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tiny_vocab import bpe_fields, spm_fields

from converter.vocabularies.gguf_fields import tokenizer_from_gguf
from qllama.tokenizer.bytelevel import BYTE_OF_CHARACTER

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def entry(token_id: int, content: str, **flags: bool) -> dict[str, Any]:
    """An entry of `added_tokens`, special unless `flags` say otherwise."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **plain, "special": True, **flags}


def decoder(*entries: dict[str, Any]) -> dict[str, Any]:
    """`added_tokens_decoder` of a `tokenizer_config.json`."""
    return {str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in entries}


def bpe_document(pre: str = "llama-bpe", **fields: Any) -> dict[str, Any]:
    """A `tokenizer.json` of byte-level BPE over `bpe_fields`."""
    return json.loads(tokenizer_from_gguf(bpe_fields(pre=pre, **fields))[1])


def prefixing_document(prepend: str = "always") -> dict[str, Any]:
    """A `tokenizer.json` as SentencePiece's are converted: BPE over `▁` with byte fallback.

    `prepend` is where it puts the space: "always" as of Llama 2 (a normalizer), "first" as
    of Mistral 7B v0.3, "never" as of Yi.
    """
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in ("▁", "h", "i", "hi", "▁hi", "[", "]", "▁["):
        vocab[piece] = len(vocab)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [{"type": "Prepend", "prepend": "▁"}, replace] if prepend == "always" else [replace]
    strip = [] if prepend == "never" else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    metaspace = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [entry(i, text) for i, text in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": None if prepend == "first" else {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": metaspace if prepend == "first" else None,
        "post_processor": surrounding(("<s>", 1)),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": ["h i", "▁ hi", "▁ ["],
        },
    }


def surrounding(
    before: tuple[str, int] | None = None, behind: tuple[str, int] | None = None
) -> dict[str, Any]:
    """A post-processor that puts tokens around every text."""
    tokens = [token for token in (before, behind) if token]
    begin, end = (
        [{"SpecialToken": {"id": token[0], "type_id": 0}}] if token else []
        for token in (before, behind)
    )
    text = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    return {
        "type": "TemplateProcessing",
        "single": [*begin, text[0], *end],
        "pair": [*begin, *text, *end],
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in tokens},
    }


def spm_model(**fields: Any) -> bytes:
    """A SentencePiece model over `spm_fields`."""
    return tokenizer_from_gguf(spm_fields(**fields))[1]


def tiktoken_file() -> bytes:
    """256 bytes, then the words of `bpe_fields` and what they are merged from."""
    tokens = bpe_fields(extra=())["tokenizer.ggml.tokens"]
    by_bytes = sorted(tokens[:256], key=BYTE_OF_CHARACTER.__getitem__)
    lines = []
    for rank, token in enumerate([*by_bytes, *tokens[256:]]):
        raw = bytes(BYTE_OF_CHARACTER[character] for character in token)
        lines.append(base64.b64encode(raw) + b" %d" % rank)
    return b"\n".join(lines) + b"\n"


def write(directory: Path, **files: Any) -> Path:
    """Write files whose names have `_` for the dot before the suffix; mappings as JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (directory / f"{stem}.{suffix}").write_bytes(raw)
    return directory
