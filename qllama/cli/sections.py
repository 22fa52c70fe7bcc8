"""How help is arranged: options and commands under headings, so that they can be found.

Owns the headings. An option that has none stands under `Options`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import click

__all__ = ["SectionedCommand", "write_sections"]

# By the long flags of options, in the order in which help shows them.
_HEADINGS = {
    "Sampling": (
        *("--seed", "--temp", "--top-k", "--top-p", "--min-p", "--repeat-penalty"),
        *("--repeat-last-n", "--presence-penalty", "--frequency-penalty", "--logit-bias"),
    ),
    "Form of the answer": (
        *("--json-schema", "--json-schema-file", "--grammar", "--grammar-file"),
    ),
    "Checkpoint": ("--from", "--config", "--tokenizer", "--rope-layout", "--fused-layout"),
    "Resources": (
        *("--ctx-size", "--threads", "--batch-size", "--cache-type-k", "--cache-type-v"),
        *("--mmap", "--model-draft", "--draft-max"),
    ),
    "Other": ("--verbose", "--debug", "--help"),
}


class SectionedCommand(click.Command):
    """A command whose help shows its options under several headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options into the `formatter` of a help page; `ctx` is its command's."""
        records = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if isinstance(option, click.Option) and record is not None:
                long = next(flag for flag in option.opts if flag.startswith("--"))
                records[long] = record
        write_sections(formatter, "Options", _HEADINGS, records)


def write_sections(
    formatter: click.HelpFormatter,
    first: str,
    headings: Mapping[str, Iterable[str]],
    records: Mapping[str, tuple[str, str]],
) -> None:
    """Write records of help under headings, and before these those that have none.

    Parameters
    ----------
    formatter : click.HelpFormatter
    first : str
        Heading of those that have none.
    headings : mapping
        To the names under each.
    records : mapping
        Of names to what help shows of them: spelling and explanation.
    """
    placed = {name for names in headings.values() for name in names}
    sections = {first: [name for name in records if name not in placed], **headings}
    for heading, names in sections.items():
        rows = [records[name] for name in names if name in records]
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)
