"""Small GGUF vocabularies, as the metadata of a file would hold them."""

from __future__ import annotations

from typing import Any

from qllama.tokenizer.bytelevel import CHARACTER_OF_BYTE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def spell(text: str) -> str:
    """Spell `text` in the byte alphabet."""
    return "".join(CHARACTER_OF_BYTE[byte] for byte in text.encode())


def bpe_fields(
    words: tuple[str, ...] = ("hello", " world", "  ", "12", "é", "🦙"),
    *,
    extra: tuple[tuple[str, int], ...] = (
        ("<|bos|>", CONTROL),
        ("<|im_end|>", CONTROL),
        ("<tool>", USER_DEFINED),
    ),
    **fields: Any,
) -> dict[str, Any]:
    """Byte-level BPE: 256 bytes, `words` with the merges that build them, `extra` tokens.

    Keyword arguments are `tokenizer.ggml.*` fields to set.
    """
    tokens = list(CHARACTER_OF_BYTE)
    merges = []
    for word in map(spell, words):
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    types = [NORMAL] * len(tokens) + [kind for _, kind in extra]
    tokens += [text for text, _ in extra]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        **{f"tokenizer.ggml.{name}": value for name, value in fields.items()},
    }


def spm_fields(
    words: tuple[str, ...] = ("▁hello", "▁world", "▁é", "▁▁"),
    *,
    extra: tuple[tuple[str, int], ...] = (("<|im_end|>", CONTROL), ("<tool>", USER_DEFINED)),
    **fields: Any,
) -> dict[str, Any]:
    """SentencePiece: `<unk> <s> </s>`, 256 bytes, ASCII, `words` and their beginnings."""
    entries = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    entries += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    entries += [(chr(character), NORMAL) for character in range(0x21, 0x7F)]
    entries += [("▁", NORMAL)]
    for word in words:
        for end in range(1, len(word) + 1):
            if (word[:end], NORMAL) not in entries:
                entries.append((word[:end], NORMAL))
    entries += extra
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _ in entries],
        "tokenizer.ggml.token_type": [kind for _, kind in entries],
        "tokenizer.ggml.scores": [-float(i) for i in range(len(entries))],
        **{f"tokenizer.ggml.{name}": value for name, value in fields.items()},
    }


def token_id(fields: dict[str, Any], text: str) -> int:
    """The id of the token that the vocabulary spells `text`."""
    return fields["tokenizer.ggml.tokens"].index(text)
