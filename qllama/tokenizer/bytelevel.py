"""The byte alphabet of GPT-2's tokenizer: one printable character for each byte.

Byte-level BPE vocabularies spell tokens in it (`Ġthe` is ` the`). Owns the
table, and nothing else.
"""

from __future__ import annotations

__all__ = ["BYTE_OF_CHARACTER", "CHARACTER_OF_BYTE"]


def _alphabet() -> list[str]:
    """Return the character of each byte.

    Reference: `bytes_to_unicode` of GPT-2's `encoder.py`. Printable Latin-1
    stands for itself; the other 68 bytes take U+0100.. in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    shifted = {byte: 0x100 + i for i, byte in enumerate(others)}
    return [chr(shifted.get(byte, byte)) for byte in range(256)]


CHARACTER_OF_BYTE = _alphabet()
BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(CHARACTER_OF_BYTE)}
