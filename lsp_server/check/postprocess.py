"""From what a model wrote to what is worth inserting at one cursor.

Each rule either shortens the text from its end, or drops it, or changes white space:

1. a last line that the model was cut off in goes, where there are others;
2. the text takes on the document's indentation;
3. loops are cut, repeats of the lines above and below dropped;
4. the text ends with the line, statement or block that it completes (`extent`);
5. no bracket is closed twice (`brackets`), and nothing is said again that follows (`overlap`).
"""

from __future__ import annotations

from lsp_server.check.brackets import CLOSERS, without_doubled_closers
from lsp_server.check.extent import fitting
from lsp_server.check.indentation import TAB_WIDTH, indent_style, without_doubled_indent
from lsp_server.check.overlap import without_overlap
from lsp_server.check.repetition import repeats_following, repeats_preceding, without_loops
from lsp_server.check.syntax import SyntaxPlace
from lsp_server.document.context import InfillContext

_NO_LAST_COMMA = ("json", "jsonc")
_NO_BLANK_BEFORE = ("", "\n", "\r", ";", ",")


def worth_inserting(text: str, place: SyntaxPlace, *, explicit: bool, finished: bool = True) -> str:
    """The part of `text` to insert at the (first) hole of `place`; "" for nothing.

    `explicit`: a person asked, who may get more lines. `finished`: the model came to its end.
    """
    context = place.context
    following = context.between[0] if context.between else context.suffix
    if not finished and "\n" in text.strip("\n"):
        text = text.rpartition("\n")[0]
    text = without_loops(_in_style(text, context))
    line_prefix = context.prefix.rpartition("\n")[2]
    if repeats_following(text, line_prefix, following) or repeats_preceding(text, context.prefix):
        return ""
    text = fitting(text, place, explicit=explicit)
    # The rest of the line, as a whole, before its brackets one by one.
    text = without_overlap(text, following)
    text = without_overlap(without_doubled_closers(text, place), following)
    if context.language in _NO_LAST_COMMA and following.lstrip()[:1] in CLOSERS:
        text = text.rstrip().removesuffix(",")
    if repeats_following(text, line_prefix, following) or repeats_preceding(text, context.prefix):
        return ""
    # Nothing is written with a blank before a line's end, nor before these.
    return text.rstrip(" \t") if following[:1] in _NO_BLANK_BEFORE else text


def _in_style(text: str, context: InfillContext) -> str:
    """`text` indented as the document is, and without a space that stands there already."""
    line_prefix = context.prefix.rpartition("\n")[2]
    if line_prefix.strip() and line_prefix[-1].isspace():
        text = text.lstrip(" \t")
    style = indent_style(context)
    if style is not None:
        text = style.adopt(text, from_line_start=not line_prefix)
    if line_prefix and not line_prefix.strip():
        text = without_doubled_indent(text, context, style.width if style else TAB_WIDTH)
    return text
