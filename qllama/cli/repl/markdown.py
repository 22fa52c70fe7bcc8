"""Markdown as it is streamed: which blocks are finished, and how a block looks.

Owns the dialect. CommonMark with tables and strikethrough, but for two things that
answers of models need: a line break is a line break, and what looks like HTML is text.
"""

from __future__ import annotations

from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown
from rich.segment import Segment
from rich.syntax import Syntax

__all__ = ["blocks", "finished_blocks", "rendered"]


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


def blocks(text: str) -> list[str]:
    """Cut `text` into its blocks: headings, paragraphs, whole lists, fences, tables."""
    tokens = _parser().parse(text)
    starts = [t.map[0] for t in tokens if t.map and t.level == 0 and t.nesting >= 0]
    # As the parser counts them: other line ends of Unicode are none to it.
    lines = text.split("\n")
    ends = [*starts, len(lines)][1:]
    return [
        "\n".join(lines[s:e]) + "\n" * (e < len(lines)) for s, e in zip(starts, ends, strict=True)
    ]


def finished_blocks(text: str) -> tuple[list[str], str]:
    """Return the blocks that no text after them can change, and what is left.

    The last block may still go on. While it has but one word, it may even belong to the
    block before it: a `2` can become the `2.` of a list.
    """
    *finished, rest = blocks(text) or [""]
    if finished and len((rest + "|").split()) == 1:
        rest = finished.pop() + rest
    return finished, rest


class _Code(CodeBlock):
    """Code at the left edge, so that it can be copied as it is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(str(self.text).rstrip(), self.lexer_name, theme=self.theme, word_wrap=True)


class _Heading(Heading):
    """A heading at the left edge, above its text however wide the terminal is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Item(ListItem):
    """An item of a list at the left edge; a number keeps its dot."""

    def render_bullet(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return self._after(
            Segment("• ", console.get_style("markdown.item.bullet")), console, options
        )

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        # `last_number` is rich's, which counts one too many.
        marker = f"{number}.".rjust(len(str(last_number - 1)) + 1) + " "
        style = console.get_style("markdown.item.number")
        return self._after(Segment(marker, style), console, options)

    def _after(self, marker: Segment, console: Console, options: ConsoleOptions) -> RenderResult:
        width = len(marker.text)
        room = options.update(width=options.max_width - width)
        for i, line in enumerate(console.render_lines(self.elements, room, style=self.style)):
            yield Segment(" " * width) if i else marker
            yield from line
            yield Segment.line()


class _Markdown(Markdown):
    elements = Markdown.elements | {
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
        "list_item_open": _Item,
    }


def rendered(text: str) -> Markdown:
    """Return what `rich` draws for `text`."""
    # Colours of the terminal's own palette; addresses of links are shown, not hidden.
    markdown = _Markdown("", code_theme="ansi_dark", hyperlinks=False)
    markdown.parsed = _parser().parse(text)
    for token in markdown.parsed:
        for child in token.children or ():
            _keep_line_break(child)
    return markdown


def _keep_line_break(token: Token) -> None:
    if token.type == "softbreak":
        token.type = "hardbreak"
