"""llama-cpp-python's grammars, for programs that switch by their import."""

from __future__ import annotations

import os
from pathlib import Path

from qllama.generation.constraint import Constraint

__all__ = ["LlamaGrammar"]


class LlamaGrammar(Constraint):
    """What `grammar=` takes beside a text, made as llama-cpp-python makes it.

    Examples
    --------
    >>> from qllama import LlamaGrammar
    >>> grammar = LlamaGrammar.from_string('root ::= "yes" | "no"')
    """

    __slots__ = ()

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        """Return the grammar of a text in GBNF or Lark.

        Parameters
        ----------
        grammar : str
        verbose : bool
            There is nothing to say.
        """
        return cls("grammar", grammar)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> LlamaGrammar:
        """Return the grammar in a file.

        Parameters
        ----------
        file : str or path
        verbose : bool
            There is nothing to say.

        Raises
        ------
        OSError
            When it cannot be read.
        """
        return cls.from_string(Path(file).read_text(encoding="utf-8"))

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        """Return the grammar of JSON that follows a schema.

        Parameters
        ----------
        json_schema : str
            Its text.
        verbose : bool
            There is nothing to say.

        Raises
        ------
        ValueError
            When it is no JSON.
        """
        made = Constraint.of(json_schema=json_schema)
        assert made is not None
        return cls(made.kind, made.text, made.option)
