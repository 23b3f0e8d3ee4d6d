"""How a document indents, and lines of text brought into that style."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from lsp_server.context import InfillContext

_INDENTED = re.compile(r"^([ \t]+)\S", re.MULTILINE)
_READ_CHARS = 20_000
"""How far from the hole indentation is looked at."""
_COMMON_WIDTHS = (2, 3, 4, 8)
TAB_WIDTH = 4
"""Columns a tab counts for where the document does not tell."""


@dataclass(frozen=True, slots=True)
class IndentStyle:
    """What a document puts at the start of its lines."""

    uses_tabs: bool
    width: int
    """Spaces of one level; with tabs, of what stands for one where spaces were written."""

    def adopt(self, text: str, *, from_line_start: bool) -> str:
        """`text` with its lines indented in this style.

        The first line's own indentation counts only where the text begins at a line's start.
        """
        first, newline, rest = text.partition("\n")
        if from_line_start:
            first = self._indented(first)
        return first + newline + "\n".join(map(self._indented, rest.split("\n")))

    def _indented(self, line: str) -> str:
        content = line.lstrip(" \t")
        indent = line[: len(line) - len(content)]
        if self.uses_tabs:
            levels, spaces = divmod(columns(indent, self.width), self.width)
            # Fewer spaces than a level align what they stand before.
            return "\t" * levels + " " * spaces + content if " " * self.width in indent else line
        return indent.replace("\t", " " * self.width) + content


def columns(indent: str, tab_width: int = TAB_WIDTH) -> int:
    """How wide `indent` is."""
    return len(indent.expandtabs(tab_width))


def indent_of(line: str) -> str:
    """The white space that `line` begins with."""
    return line[: len(line) - len(line.lstrip(" \t"))]


def indent_style(context: InfillContext) -> IndentStyle | None:
    """The style of the lines around the hole; None where none of them is indented."""
    following = context.between[0] if context.between else context.suffix
    indents = _INDENTED.findall(context.prefix[-_READ_CHARS:])
    indents += _INDENTED.findall(following[:_READ_CHARS])
    current = context.prefix.rpartition("\n")[2]
    if current and not current.strip():
        indents.append(current)  # the editor has indented the line at the cursor
    if not indents:
        return None
    tabs = sum(indent[0] == "\t" for indent in indents)
    if 2 * tabs > len(indents):
        return IndentStyle(uses_tabs=True, width=TAB_WIDTH)
    widths = [len(indent) for indent in indents if indent[0] == " "]
    steps = Counter(
        abs(after - before) for before, after in zip((0, *widths), widths, strict=False)
    )
    width = max(_COMMON_WIDTHS, key=lambda width: (steps[width], width == TAB_WIDTH))
    return IndentStyle(uses_tabs=False, width=width)
