"""What the shell completes where a command takes a MODEL."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

__all__ = ["complete_cached", "complete_model", "model_names"]


def model_names() -> list[str]:
    """Return the names that every command takes as its MODEL."""
    from qllama.hub.installed import cached_names
    from qllama.hub.registry import REGISTRY

    return [*REGISTRY, *cached_names()]


def complete_model(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names that begin with `incomplete`, and have the shell add files.

    Parameters
    ----------
    ctx : click.Context
    param : click.Parameter
    incomplete : str
        What stands before the cursor.
    """
    # First: the shell's scripts forget what came before it.
    files = CompletionItem(incomplete, type="file")
    return [files, *(CompletionItem(n) for n in model_names() if n.startswith(incomplete))]


def complete_cached(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names of models in the cache that begin with `incomplete`.

    Parameters
    ----------
    ctx : click.Context
    param : click.Parameter
    incomplete : str
        What stands before the cursor.
    """
    from qllama.hub.installed import cached_names

    return [CompletionItem(name) for name in cached_names() if name.startswith(incomplete)]
