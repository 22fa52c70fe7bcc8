"""Which files of a repository on the hub make one model.

Owns the preference among weight types and formats. Fetches nothing.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qllama.errors import ModelNotFoundError

__all__ = ["Choice", "choose", "matching"]

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-\d{5}\.gguf", re.IGNORECASE)
_FIRST = "00001"

# Least loss first as far as a download of twice the size is not worth it: Q8_0 is nearly
# exact, anything below it is quantized a second time.
_PREFERRED = (
    *("Q8_0", "BF16", "F16", "FP16", "Q6_K", "Q5_K_M", "Q5_1", "Q5_K_S", "Q5_0"),
    *("Q4_K_M", "Q4_1", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q4_0", "F32"),
)

# What one model is called where there is no GGUF file of it, and what belongs to it.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True, slots=True)
class Choice:
    """Files to fetch.

    Parameters
    ----------
    main : str
        The one to convert.
    files : tuple of str
        All of them, the small ones first: they tell whether the rest is worth fetching.
    """

    main: str
    files: tuple[str, ...]


def choose(repo: str, want: str | None, names: Sequence[str]) -> Choice:
    """Choose a GGUF file, or without one the weights in Hugging Face's layout.

    Parameters
    ----------
    repo : str
        For messages.
    want : str or None
        A GGUF file's name, or a weight type that it ends with; or the name of a file of
        weights in Hugging Face's layout.
    names : sequence of str
        All files of the repository.

    Raises
    ------
    ModelNotFoundError
        When there is no such file; lists what there is.
    """
    from converter.naming import weight_type

    parts = {name: _PART.fullmatch(name) for name in names if _is_gguf_model(name)}
    # The first part of a split file stands for all.
    models = [name for name, part in parts.items() if part is None or part["number"] == _FIRST]
    if not models and want is None:
        return _weights(repo, names)
    family = _family(want, names)
    if family:
        return _weights(repo, [*(name for name in names if name in _COMPANIONS), *family])
    chosen = models
    if want is not None:
        want = want.lower()
        split = _PART.fullmatch(want)
        if split is not None:
            want = f"{split['stem']}-{_FIRST}{want[split.end('number') :]}"
        chosen = [n for n in models if n.lower() in (want, f"{want}.gguf")] or [
            n for n in models if f"{weight_type(n)}_".lower().startswith(f"{want}_")
        ]
    if not chosen:
        raise ModelNotFoundError(
            f"{repo}: no GGUF file {want!r}; there is {_listed(models or names)}"
        )
    main = min(chosen, key=_preference)
    first = parts[main]
    if first is None:
        return Choice(main, (main,))
    others = (n for n, part in parts.items() if part and part["stem"] == first["stem"])
    return Choice(main, tuple(sorted(others)))


def matching(repo: str, pattern: str, names: Sequence[str]) -> str:
    """Return what a shell pattern means: the `want` of `choose` that takes what matches.

    Parameters
    ----------
    repo : str
        For messages.
    pattern : str
        As `*Q8_0.gguf`; `*` matches `/` too.
    names : sequence of str
        All files of the repository.

    Raises
    ------
    ModelNotFoundError
        When no model matches, or several do; lists them.
    """
    models = {
        choose(repo, name, names).main
        for name in fnmatch.filter(names, pattern)
        if _is_gguf_model(name) or _family(name, names)
    }
    if len(models) != 1:
        found = f"several: {_listed(models)}" if models else f"none of {_listed(names)}"
        raise ModelNotFoundError(
            f"{repo}: expected {pattern!r} to match one model, found {found}; name a file"
        )
    return models.pop()


def _family(name: str | None, names: Sequence[str]) -> list[str]:
    """Weights in Hugging Face's layout that a file is part of, with their index."""
    for single in _WEIGHTS:
        stem, _, suffix = single.rpartition(".")
        own = re.compile(rf"{stem}(-\d+-of-\d+)?\.{suffix}({re.escape(_INDEX)})?")
        if name is not None and own.fullmatch(name):
            return [other for other in names if own.fullmatch(other)]
    return []


def _is_gguf_model(name: str) -> bool:
    return name.lower().endswith(".gguf") and "mmproj" not in name.lower()


def _weights(repo: str, names: Sequence[str]) -> Choice:
    companions = tuple(name for name in _COMPANIONS if name in names)
    for single in _WEIGHTS:
        if single in names:
            return Choice(single, (*companions, single))
        index = f"{single}{_INDEX}"
        if index in names:
            stem, _, suffix = single.rpartition(".")
            shard = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
            shards = sorted(name for name in names if shard.fullmatch(name))
            return Choice(index, (*companions, index, *shards))
    raise ModelNotFoundError(
        f"{repo}: expected a GGUF file, {' or '.join(_WEIGHTS)} in this repository, found only "
        f"{_listed(names)}; look for a repository of the same model with them"
    )


def _preference(name: str) -> tuple[int, str]:
    from converter.naming import weight_type

    kind = weight_type(name)
    return (_PREFERRED.index(kind) if kind in _PREFERRED else len(_PREFERRED), name)


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more
