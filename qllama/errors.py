"""Every error qllama raises on purpose.

Owns the exception tree. Messages name the file or tensor, what was expected,
what was found and what to do next; the command line prints them as one line.
"""

from __future__ import annotations

__all__ = [
    "BadHeaderError",
    "BadMagicError",
    "BadTensorError",
    "BadVersionError",
    "ChecksumError",
    "ContextLengthError",
    "ConversionError",
    "EvaluationError",
    "KernelError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "QllamaError",
    "QlmFormatError",
    "SamplingError",
    "StateError",
    "TokenizerError",
    "TruncatedError",
    "UnsupportedModelError",
]


class QllamaError(Exception):
    """Base of every error that qllama raises on purpose."""


class QlmFormatError(QllamaError):
    """A `.qlm` file does not follow `docs/format.md`."""


class BadMagicError(QlmFormatError):
    """The file does not start with the `.qlm` magic: it is something else."""


class BadVersionError(QlmFormatError):
    """The file's format version is not one this qllama can read."""


class TruncatedError(QlmFormatError):
    """The file is shorter than its prelude says."""


class BadHeaderError(QlmFormatError):
    """The prelude or the JSON header is malformed."""


class BadTensorError(QlmFormatError):
    """A tensor's table entry is malformed, or breaks the layout invariant."""


class ChecksumError(QlmFormatError):
    """Stored bytes do not match their checksum."""


class UnsupportedModelError(QllamaError):
    """The model needs something that qllama does not compute; named in the message."""


class ConversionError(QllamaError):
    """A checkpoint cannot be converted: unreadable, incomplete or inconsistent."""


class ModelNotFoundError(QllamaError):
    """No model of that name or path, or it could not be fetched."""


class TokenizerError(QllamaError):
    """A tokenizer or chat template is missing, malformed or unknown."""


class ContextLengthError(QllamaError):
    """The tokens do not fit the context window."""


class EvaluationError(QllamaError):
    """A text is too short to score, or two models cannot be compared on it."""


class SamplingError(QllamaError):
    """No next token can be chosen from the model's logits."""


class StateError(QllamaError):
    """A saved state is damaged, of another model, or cannot be written."""


class KernelError(QllamaError):
    """A kernel cannot be built or run on this machine."""


class OutOfMemoryError(QllamaError):
    """More memory is needed than this machine grants."""
