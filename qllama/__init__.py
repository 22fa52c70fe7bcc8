"""qllama: run Llama-family language models on ordinary CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qllama.api import Llama as Llama
    from qllama.api.grammar import LlamaGrammar as LlamaGrammar
    from qllama.generation.lookup import PromptLookup as LlamaPromptLookupDecoding

__all__ = ["Llama", "LlamaGrammar", "LlamaPromptLookupDecoding", "__version__"]


def __getattr__(name: str) -> Any:
    # `import qllama` must stay cheap: Llama brings numba, the version package metadata.
    if name == "Llama":
        from qllama.api import Llama

        return Llama
    if name == "LlamaGrammar":
        from qllama.api.grammar import LlamaGrammar

        return LlamaGrammar
    if name == "LlamaPromptLookupDecoding":
        from qllama.generation.lookup import PromptLookup

        return PromptLookup
    if name == "__version__":
        from importlib.metadata import version

        return version("qllama")
    raise AttributeError(f"module 'qllama' has no attribute {name!r}")
