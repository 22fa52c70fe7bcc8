"""Writes PyTorch's zip layout without PyTorch, as `torch.serialization._save` describes it.

That PyTorch reads the same from these files is checked where it is installed.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype("<f4"): "FloatStorage",
    np.dtype("<f2"): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype("<f8"): "DoubleStorage",
    np.dtype("<i8"): "LongStorage",
    np.dtype("i1"): "CharStorage",
    np.dtype("?"): "BoolStorage",
}


@dataclass
class View:
    """A tensor in a storage; by default all of it."""

    storage: np.ndarray
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


@dataclass
class Archive:
    """What becomes of a state dict: the pickle and the storages, to be changed at will."""

    pickle: bytes
    storages: dict[str, bytes]
    prefix: str = "archive"
    byteorder: bytes = b"little"
    compressed: tuple[str, ...] = ()
    more: dict[str, bytes] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        members = {
            "data.pkl": self.pickle,
            "byteorder": self.byteorder,
            **{f"data/{key}": raw for key, raw in self.storages.items()},
            "version": b"3\n",
            **self.more,
        }
        with zipfile.ZipFile(path, "w") as archive:
            for name, raw in members.items():
                info = zipfile.ZipInfo(f"{self.prefix}/{name}")
                if name in self.compressed:
                    info.compress_type = zipfile.ZIP_DEFLATED
                # Then the header before the data is longer than in the table, as PyTorch's.
                with archive.open(info, "w", force_zip64=True) as member:
                    member.write(raw)
        return path


def archive(tensors: Mapping[str, Any], more: bytes = b"") -> Archive:
    """Lay out a state dict.

    Parameters
    ----------
    tensors : mapping
        Values are arrays, `View`s, or what `pickled` takes.
    more : bytes
        Pickle code of one more item of a storage's identity.
    """
    body, storages = [], {}
    for name, value in tensors.items():
        if isinstance(value, np.ndarray):
            strides = tuple(s // value.itemsize for s in np.asarray(value, order="C").strides)
            value = View(value.reshape(-1), value.shape, strides)
        if isinstance(value, View):
            key = str(len(storages))
            for known, raw in storages.items():
                key = known if raw is value.storage else key
            storages[key] = value.storage
            body += [text(name), tensor(value, key, more)]
        else:
            body += [text(name), pickled(value)]
    content = b"ccollections\nOrderedDict\n)R(" + b"".join(body) + b"u"
    metadata = b"}" + text("_metadata") + b"ccollections\nOrderedDict\n)Rs"
    return Archive(
        b"\x80\x02" + content + metadata + b"b.",
        {key: raw.tobytes() for key, raw in storages.items()},
    )


def save(path: Path, tensors: Mapping[str, Any]) -> Path:
    """Write a state dict."""
    return archive(tensors).write(path)


def save_legacy(path: Path, tensors: Mapping[str, Any], **changes: Any) -> Path:
    """Write a state dict as before PyTorch 1.6, with `keys`, `counts` or `system` of one's own."""
    made = archive(tensors, more=changes.get("view", b"N"))
    sizes = {"0": 1} | {
        key: value.storage.itemsize if isinstance(value, View) else value.itemsize
        for key, value in zip(made.storages, tensors.values(), strict=False)
    }
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"long": 4}}
    keys = changes.get("keys", list(made.storages))
    with path.open("wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, 2)
        pickle.dump(1001, file, 2)
        pickle.dump(system | changes.get("system", {}), file, 2)
        file.write(made.pickle)
        pickle.dump(keys, file, 2)
        for key, raw in made.storages.items():
            count = len(raw) // sizes[key] + changes.get("miscounted", 0)
            file.write(count.to_bytes(8, "little") + raw)
    return path


def tensor(view: View, key: str, more: bytes = b"") -> bytes:
    """Spell a call of `_rebuild_tensor_v2`."""
    storage = (
        b"("
        + text("storage")
        + f"ctorch\n{STORAGES[view.storage.dtype]}\n".encode()
        + text(key)
        + text("cpu")
        + number(view.storage.size)
        + more
        + b"tQ"
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = storage + number(view.offset) + numbers(view.shape) + numbers(view.strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89" + hooks + b"tR"


def pickled(value: Any) -> bytes:
    """Spell a constant, or take pickle code as it is."""
    match value:
        case bytes():
            return value
        case int():
            return number(value)
        case str():
            return text(value)
        case dict():
            items = b"".join(text(key) + pickled(item) for key, item in value.items())
            return b"}(" + items + b"u"
    raise TypeError(value)


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"
