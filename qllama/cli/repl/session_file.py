"""Session files: a conversation and the model's state after it, so that it resumes at once.

Owns the container, which is the transcript as JSON and then a state file
(`docs/state.md`). Whatever a file says is checked before any of it is used.

    8 bytes   magic
    u32       version, 2
    u32       bytes of JSON
    u32       CRC-32 of the JSON
    JSON      {"model", "system", "turns": [[question, answer], ...],
               "parameters": {name: value, ...}}, UTF-8
    state     to the end of the file

Integers are little-endian.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from qllama.cli.repl.conversation import Conversation, Turn
from qllama.cli.repl.parameters import options_of, values_of
from qllama.errors import StateError
from qllama.format import strict_json
from qllama.format.partial import PartialFile

if TYPE_CHECKING:
    from qllama.api import Llama
    from qllama.generation.generator import GenerationOptions

__all__ = ["restore_session", "save_session"]

MAGIC = b"\x89QLC\r\n\x1a\n"
VERSION = 2
_HEADER = struct.Struct("<8sIII")
_MAX_JSON = 1 << 26
_FIELDS = ("model", "parameters", "system", "turns")


def save_session(
    path: Path, conversation: Conversation, options: GenerationOptions, llm: Llama, model: str
) -> int:
    """Write a session file; it is whole or not there.

    Parameters
    ----------
    path : Path
        An older session there is replaced.
    conversation : Conversation
    options : GenerationOptions
        Of its answers; kept as far as `/set parameter` knows them.
    llm : Llama
        The model that answered, after its last answer.
    model : str
        Its name, for people.

    Returns
    -------
    int
        Bytes of the file.

    Raises
    ------
    StateError
        When there is a file of another kind.
    ConversionError
        When the operating system refuses.
    """
    _keep_what_is_no_session(path)
    turns = [[turn.question, turn.answer] for turn in conversation.turns]
    text = strict_json.dump(
        {
            "model": model,
            "system": conversation.system,
            "turns": turns,
            "parameters": values_of(options),
        }
    )
    header = _HEADER.pack(MAGIC, VERSION, len(text), zlib.crc32(text))
    parts = (header, text, llm.save_state())
    n_bytes = sum(map(len, parts))
    file = PartialFile(path, n_bytes)
    try:
        for part in parts:
            file.write(part)
        file.commit()
    finally:
        file.discard()
    return n_bytes


def _keep_what_is_no_session(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start not in (MAGIC, b""):
        raise StateError(f"{path}: exists and is not a session; give another name")


def restore_session(path: Path, llm: Llama) -> tuple[Conversation, GenerationOptions]:
    """Read a session file and have the model hold what it held; return what it says.

    Parameters
    ----------
    path : Path
    llm : Llama
        The same model; where this raises, it is as it was.

    Raises
    ------
    StateError
        When the file is damaged, no session, or one of another model.
    OSError
        When it cannot be read.
    """
    with path.open("rb") as file:
        try:
            conversation, options, n_before = _read_transcript(file)
            # Mapped: a state of another model is refused by its header, however large. Not
            # closed here, since the traceback of a refusal still refers to what it read.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            llm.load_state(memoryview(data)[n_before:])
        except StateError as error:
            raise StateError(f"{path}: {error}") from None
    return conversation, options


def _read_transcript(file: BinaryIO) -> tuple[Conversation, GenerationOptions, int]:
    """Return the conversation, its options, and how many bytes stand before the state."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise StateError("not a session: expected a regular file; give what /save made")
    header = file.read(_HEADER.size)
    if header[: len(MAGIC)] != MAGIC or len(header) < _HEADER.size:
        raise StateError(
            f"not a session: expected it to start with {MAGIC!r}, "
            f"found {header[: len(MAGIC)]!r}; give what /save made"
        )
    _, version, n_json, checksum = _HEADER.unpack(header)
    if version != VERSION:
        raise StateError(f"version: expected {VERSION}, found {version}; save the session anew")
    n_left = status.st_size - _HEADER.size
    if n_json > min(_MAX_JSON, n_left):
        raise StateError(
            f"transcript: expected at most {min(_MAX_JSON, n_left)} bytes, found {n_json}: "
            "it is damaged; save the session anew"
        )
    text = file.read(n_json)
    if zlib.crc32(text) != checksum:
        raise StateError(
            f"transcript: expected checksum {checksum:08x}, found {zlib.crc32(text):08x}: "
            "it is damaged; save the session anew"
        )
    try:
        data = strict_json.load(text)
        return _conversation(data), options_of(data["parameters"]), _HEADER.size + n_json
    except ValueError as error:
        raise StateError(f"transcript: {error}") from None


def _conversation(data: Any) -> Conversation:
    """Check what the JSON says.

    Raises
    ------
    ValueError
        Names the field.
    """
    if not isinstance(data, dict) or sorted(data) != sorted(_FIELDS):
        raise ValueError(f"expected an object of {', '.join(_FIELDS)}")
    if not isinstance(data["model"], str) or not isinstance(data["system"], str | None):
        raise ValueError("model and system: expected texts")
    if not isinstance(data["turns"], list):
        raise ValueError("turns: expected a list")
    if not isinstance(data["parameters"], dict):
        raise ValueError("parameters: expected an object")
    turns = []
    for i, turn in enumerate(data["turns"]):
        is_pair = isinstance(turn, list) and len(turn) == 2
        if not is_pair or not all(isinstance(text, str) and text for text in turn):
            raise ValueError(f"turns[{i}]: expected a question and an answer")
        turns.append(Turn(*turn))
    return Conversation(data["system"], turns)
