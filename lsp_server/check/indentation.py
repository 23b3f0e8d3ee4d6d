"""How a document indents, and lines of text brought into that style."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from lsp_server.check.brackets import CLOSER_OF, Balance
from lsp_server.check.lexis import brackets
from lsp_server.document.context import InfillContext

_INDENTED = re.compile(r"^([ \t]+)\S", re.MULTILINE)
_READ_CHARS = 20_000
"""How far from the hole indentation is looked at."""
_COMMON_WIDTHS = (2, 3, 4, 8)
TAB_WIDTH = 4
"""Columns a tab counts for where the document does not tell."""

_GOES_ON = re.compile(r"([:{(\[=>\\|&+*/.-]|\b(do|then|else|begin|in))$")
"""The end of a line after which the next one may be indented deeper."""
_HEAD = re.compile(
    r"\s*(local\s+)?(def|class|module|function|if|elsif|elif|unless|while|until|for|case|when|begin"
    r"|rescue|ensure)\b(?!.*:\s)"
)
"""A line that begins a block without a sign for it, or a body without braces."""
_CONTINUES = re.compile(r"\s*([.?:&|+*/<>=-]|(and|or|if|else|for)\b)")
"""The beginning of a line that may go on with the one above."""
_LEAVES = re.compile(r"\s*(return|raise|throw|break|continue|pass|exit|goto)\b")
"""The beginning of a statement that the next one does not stand beside."""
_STATEMENT_CHARS = 4_000
_MAX_STATEMENT_LINES = 50


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


def without_doubled_indent(text: str, context: InfillContext, width: int) -> str:
    """`text` without the part of its first indentation that, with what the line has already, goes
    deeper than what stands above lets it; and its other lines, where they are too deep with it."""
    above, _, line_prefix = context.prefix.rpartition("\n")
    first, *others = text.split("\n")
    indent, there = indent_of(first), columns(line_prefix)
    if not indent or not first.strip() or not above.strip():
        return text
    deep = columns(line_prefix + indent)
    statement = _last_statement(above, context.language)
    if deep in _aligned(statement, context.language):
        return text
    may_be_deeper = _goes_on(statement, context.language) or _CONTINUES.match(first)
    allowed = columns(indent_of(statement))
    if may_be_deeper:
        allowed += width
    elif _LEAVES.match(statement):
        allowed -= width
    below = columns(indent_of(next((line for line in others if line.strip()), "")))
    inner = width if _goes_on(first, context.language) else 0
    too_deep = deep - max(allowed, there)
    if too_deep <= 0:
        return text
    if indent == line_prefix:
        too_deep = deep - there  # it has been said again
    first = _dedented(first, too_deep)
    if below == deep + inner:
        others = [_dedented(line, too_deep) for line in others]
    return "\n".join((first, *others))


def _last_statement(above: str, language: str) -> str:
    """The last line of `above` that is not blank, from the line on that opens what it closes."""
    lines = above.rstrip()[-_STATEMENT_CHARS:].split("\n")
    for count in range(1, min(len(lines), _MAX_STATEMENT_LINES) + 1):
        statement = "\n".join(lines[-count:])
        if not Balance.of(statement, language).closed:
            return statement
    return lines[-1]


def _aligned(statement: str, language: str) -> set[int]:
    """The columns at which what stands behind the open brackets of a statement's last line does."""
    line = statement.rpartition("\n")[2]
    opened: list[int] = []
    for index, bracket in brackets(line, language):
        if bracket in CLOSER_OF:
            opened.append(index)
        elif opened:
            opened.pop()
    return {columns(line[: index + 1]) for index in opened if line[index + 1 :].strip()}


def _goes_on(statement: str, language: str) -> bool:
    """Whether the line below `statement` may be indented deeper."""
    statement = statement.rstrip()
    if _GOES_ON.search(statement) or Balance.of(statement, language).opened:
        return True
    return bool(_HEAD.match(statement)) and not statement.endswith((";", "}", " end"))


def _dedented(line: str, by: int) -> str:
    """`line` with `by` columns less of indentation, or a few more where tabs do not let it."""
    indent = indent_of(line)
    wanted = max(columns(indent) - by, 0)
    while columns(indent) > wanted:
        indent = indent[:-1]
    return indent + line.lstrip(" \t")
