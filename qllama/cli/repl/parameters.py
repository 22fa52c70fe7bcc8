"""The parameters that `/set parameter` knows, under ollama's names.

Owns names, types and what they are called elsewhere. Ranges are `SamplingParams`' and
`Limits`' business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from qllama.generation.generator import GenerationOptions

__all__ = [
    "NUM_CTX",
    "PARAMETERS",
    "Parameter",
    "changed",
    "find_parameter",
    "options_of",
    "values_of",
]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    Parameters
    ----------
    name : str
        As users type it.
    option : str
        Its name in `GenerationOptions`.
    kind : type
        int, float, or tuple for several texts.
    help : str
        What it does.
    """

    name: str
    option: str
    kind: type
    help: str

    @property
    def usage(self) -> str:
        """How it is given, as ollama writes it."""
        values = {int: "<int>", float: "<float>", tuple: "<string> <string> ..."}
        return f"{self.name} {values[self.kind]}"

    def parse(self, words: Sequence[str]) -> Any:
        """Return the value that `words` spell.

        Raises
        ------
        ValueError
            When they spell none; says what was expected.
        """
        if self.kind is tuple:
            return tuple(words)
        try:
            (word,) = words
            return self.kind(word)
        except ValueError:
            raise self._wrong(" ".join(words)) from None

    def restored(self, value: Any) -> Any:
        """Return what JSON kept as `value`.

        Raises
        ------
        ValueError
            When it can be none; says what was expected.
        """
        if self.kind is tuple:
            if isinstance(value, list) and all(isinstance(text, str) for text in value):
                return tuple(value)
        elif type(value) is int or type(value) is self.kind:  # True would be an int, too
            return self.kind(value)
        raise self._wrong(value)

    def _wrong(self, value: object) -> ValueError:
        expected = {int: "an integer", float: "a number", tuple: "a list of texts"}
        return ValueError(f"{self.name}: expected {expected[self.kind]}, found {value!r}")


NUM_CTX = "num_ctx"
"""Not an option of an answer: the model is opened anew with it."""

PARAMETERS = (
    Parameter("seed", "seed", int, "Random number seed"),
    Parameter("num_predict", "max_tokens", int, "Max number of tokens to predict"),
    Parameter("top_k", "top_k", int, "Pick from top k num of tokens"),
    Parameter("top_p", "top_p", float, "Pick token based on sum of probabilities"),
    Parameter("min_p", "min_p", float, "Pick token based on top token probability * min_p"),
    Parameter(NUM_CTX, NUM_CTX, int, "Set the context size"),
    Parameter("temperature", "temperature", float, "Set creativity level"),
    Parameter("repeat_penalty", "repeat_penalty", float, "How strongly to penalize repetitions"),
    Parameter("repeat_last_n", "repeat_last_n", int, "Set how far back to look for repetitions"),
    Parameter("presence_penalty", "presence_penalty", float, "Penalize tokens used lately"),
    Parameter("frequency_penalty", "frequency_penalty", float, "The same, once for each use"),
    Parameter("stop", "stop", tuple, "Set the stop parameters"),
)


def find_parameter(name: str) -> Parameter:
    """Return the parameter `name`.

    Raises
    ------
    ValueError
        When there is none of that name.
    """
    for parameter in PARAMETERS:
        if parameter.name == name:
            return parameter
    raise ValueError(f"unknown parameter '{name}'")


def changed(
    options: GenerationOptions, parameter: Parameter, words: Sequence[str]
) -> GenerationOptions:
    """Return `options` with `parameter` set to what `words` spell.

    Raises
    ------
    ValueError
        When the value is none, or out of range; names the parameter.
    """
    return _checked({**options, parameter.option: parameter.parse(words)})


def values_of(options: GenerationOptions) -> dict[str, Any]:
    """Return the values of `options` by the names of parameters, for JSON to keep."""
    values = cast("dict[str, Any]", options)
    return {p.name: values[p.option] for p in PARAMETERS if p.option in values}


def options_of(values: Mapping[str, Any]) -> GenerationOptions:
    """Return what `values_of` was made of.

    Raises
    ------
    ValueError
        When a name or a value is none, or out of range; names the parameter.
    """
    if NUM_CTX in values:
        raise ValueError(f"{NUM_CTX}: expected options of an answer only")
    found = {name: find_parameter(name) for name in values}
    return _checked({p.option: p.restored(values[name]) for name, p in found.items()})


def _checked(options: dict[str, Any]) -> GenerationOptions:
    from qllama.generation.draft import Limits
    from qllama.generation.options import SamplingOptions, SamplingParams

    # Made to be checked only: the sampler's and the loop's own checks.
    SamplingParams(**{k: v for k, v in options.items() if k in SamplingOptions.__annotations__})
    Limits(cast("int | None", options.get("max_tokens")))
    return cast("GenerationOptions", options)
