"""How far a completion reaches: one line or several, and where the block ends that it began.

The syntax tree around the cursor decides, with a plain name in the hole:

* At the start of a block's empty body, a completion may write all of the body.
* Inside brackets that are open on the cursor's line, it goes to the end of the line.
* Elsewhere it may complete the one statement that the cursor's line begins, however many lines
  that takes: a block that the text itself begins is kept to its end.

A person who asks gets all that the model wrote and that still belongs to the cursor's block. Where
no grammar knows the language, or the tree is broken there, indentation and brackets stand in.

`reach` says as much of that as is known before there is a text, so that the engine need not write
what `fitting` would throw away.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tree_sitter import Node

from lsp_server.check.brackets import CLOSER_OF, Balance
from lsp_server.check.indentation import columns, indent_of
from lsp_server.check.syntax import FilledTree, SyntaxPlace
from lsp_server.document.context import InfillContext

Surroundings = Literal["body", "brackets", "statement"]

_BODIES = frozenset({
    "module", "program", "source_file", "translation_unit", "compilation_unit", "stylesheet",
    "block", "statement_block", "statement_list", "compound_statement", "declaration_list",
    "field_declaration_list", "class_body", "interface_body", "enum_body", "object_type",
    "constructor_body", "switch_body", "switch_block", "match_block", "body_statement", "do_block",
    "do_group", "then", "else", "annotation_type_body", "enum_member_declaration_list",
    "ordered_field_declaration_list", "enumerator_list", "enum_variant_list", "method", "class",
})  # fmt: skip
"""Node types that hold statements or members, in the grammars of `model.grammars`."""

_BRACKETED = re.compile(
    r"arguments|argument_list|parameters|parameter_list|^(formal_)?parameter|list|array|tuple"
    r"|dictionary|^object$|subscript|parenthesized|literal_value|initializer_list|index_expression"
)

_LEADS = re.compile(r"comment|^attribute_item$")
"""Nodes that belong to what comes after them."""

_OPENS_BLOCK = re.compile(r"([:{(\[]|=>|->|\b(do|then|else|begin|in))\s*$")
_CLOSES_BLOCK = re.compile(r"\s*([)\]}]+[;,]*|end|fi|done|esac)\s*$")
_GOES_ON = re.compile(r"\s*(\}|end\b)?\s*(else|elif|elsif|except|catch|finally|rescue|ensure)\b")
"""A line that continues the statement whose block it may close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far any completion of a place may go; as `InfillRequest` has it."""

    max_lines: int | None = None
    min_indent: int | None = None


def reach(place: SyntaxPlace, *, explicit: bool) -> Reach:
    """What every text is cut to at `place`, whatever it says; `fitting` may cut more."""
    context = place.context
    line_prefix = context.prefix.rpartition("\n")[2]
    following = context.between[0] if context.between else context.suffix
    rest_of_line = following.partition("\n")[0].strip()
    if rest_of_line:
        may_spread = explicit or _is_pair(line_prefix, rest_of_line)
        return Reach(max_lines=None if may_spread else 1)
    surroundings = _surroundings(place)
    if surroundings == "brackets" and not explicit and _opens_bracket(context):
        # A bracket that the text leaves open at its line's end would go on; that is rare, and to
        # write on behind every argument takes several times as long.
        return Reach(max_lines=1)
    base = columns(indent_of(line_prefix))
    if surroundings == "body":
        return Reach(min_indent=base + 1 if line_prefix.strip() else base or None)
    if explicit or (line_prefix.strip() and _is_whole_statement(place, line_prefix)):
        return Reach(min_indent=base or None)
    # Only what is indented deeper belongs to the statement of the first line.
    return Reach(min_indent=base + 1)


def _is_pair(line_prefix: str, rest_of_line: str) -> bool:
    """Whether the cursor is right between two brackets, which may be spread over lines."""
    return CLOSER_OF.get(line_prefix.rstrip()[-1:]) == rest_of_line[0]


def _opens_bracket(context: InfillContext) -> bool:
    """Whether a bracket of the cursor's line is open at the cursor."""
    line_prefix = context.prefix.rpartition("\n")[2]
    return bool(Balance.of(line_prefix, context.language).opened)


def _is_whole_statement(place: SyntaxPlace, line_prefix: str) -> bool:
    """Whether the cursor's line could end at the cursor: a text may begin with a new one."""
    filled = place.tree_with(f"\n{indent_of(line_prefix)}x")
    if filled is None:
        return True
    start = filled.start - len(line_prefix.lstrip(" \t").encode("utf-8", "replace"))
    node = _statement_at(filled, start)
    return node is not None and not node.has_error and node.end_byte <= filled.start


def fitting(text: str, place: SyntaxPlace, *, explicit: bool) -> str:
    """As much of `text` as a completion at `place` should show."""
    context = place.context
    line_prefix = context.prefix.rpartition("\n")[2]
    following = context.between[0] if context.between else context.suffix
    rest_of_line = following.partition("\n")[0]
    if rest_of_line.strip():
        may_spread = explicit or _fills_brackets(text, line_prefix, rest_of_line.strip())
        return text if may_spread else _first_line(text)
    if "\n" not in text.strip("\n"):
        return text
    surroundings = _surroundings(place)
    text = _within_block(text, context, is_body=surroundings == "body")
    if explicit or surroundings == "body":
        return _until_two_blank_lines(text)
    if surroundings == "brackets" and not _opens_line(text, context.language):
        return _first_line(text.lstrip("\n")) if not text.startswith("\n") else text
    return _one_statement(text, place)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _opens_line(text: str, language: str) -> bool:
    """Whether the first line opens a bracket that it leaves open."""
    return bool(Balance.of(_first_line(text), language).opened)


def _fills_brackets(text: str, line_prefix: str, rest_of_line: str) -> bool:
    """Whether the text spreads over lines between brackets that an editor has just paired."""
    closers_only = not rest_of_line.strip(")]}\"'`;, ")
    is_spread = closers_only and text.startswith("\n") and not Balance.of(text, "").opened
    return is_spread and _is_pair(line_prefix, rest_of_line)


def _until_two_blank_lines(text: str) -> str:
    """Two blank lines end what belongs together."""
    lead = len(text) - len(text.lstrip("\n"))
    match = re.compile(r"\n[ \t]*\n[ \t]*\n").search(text, lead)
    return text[: match.start()] if match else text


# --- By indentation ---------------------------------------------------------------------------


def _within_block(text: str, context: InfillContext, *, is_body: bool) -> str:
    """`text` up to the first line that is indented less than the block the cursor is in.

    The line that closes that block is kept: the bracket rule says whether it is one too many.
    """
    line_prefix = context.prefix.rpartition("\n")[2]
    lines = text.split("\n")
    opened_here = bool(line_prefix.strip()) and is_body
    least = _block_columns(lines, line_prefix, opened_here=opened_here)
    for index, line in enumerate(lines[1:], start=1):
        if not line.strip() or columns(indent_of(line)) >= least:
            continue
        if opened_here and _GOES_ON.match(line) and columns(indent_of(line)) == least - 1:
            continue
        end = index + 1 if _CLOSES_BLOCK.match(line) else index
        return "\n".join(lines[:end])
    return text


def _block_columns(lines: list[str], line_prefix: str, *, opened_here: bool) -> int:
    """The least indentation of a line that still belongs to the cursor's block."""
    if line_prefix.strip():
        return columns(indent_of(line_prefix)) + (1 if opened_here else 0)
    first = line_prefix + lines[0]
    if not first.strip():
        first = next((line for line in lines[1:] if line.strip()), "")
    return columns(indent_of(first))


# --- By syntax tree ---------------------------------------------------------------------------


def _surroundings(place: SyntaxPlace) -> Surroundings:
    """Where the cursor is, as far as one can tell without the text."""
    filled = place.tree_with("x")
    if filled is None:
        return _surroundings_by_line(place.context)
    node: Node | None = filled.tree.root_node.descendant_for_byte_range(filled.start, filled.end)
    while node is not None and node.parent is not None:
        parent = node.parent
        if parent.is_error:
            break
        if parent.type in _BODIES and node.is_named:
            is_new = parent.parent is not None and node.start_byte == filled.start
            return "body" if is_new and not _others(parent, node) else "statement"
        if _BRACKETED.search(parent.type):
            return "brackets"
        node = parent
    return _surroundings_by_line(place.context)


def _others(body: Node, statement: Node) -> list[Node]:
    """What else the body holds; comments and a docstring do not count."""
    others = [n for n in body.named_children if n != statement and "comment" not in n.type]
    if others and others[0].type == "expression_statement" and others[0].named_child_count == 1:
        string = others[0].named_children[0]
        if string.type == "string" and others[0].start_byte < statement.start_byte:
            others = others[1:]
    if body.type in ("method", "class"):  # Ruby: their names, parameters and superclasses
        others = [n for n in others if n.start_byte > statement.start_byte]
    return others


def _surroundings_by_line(context: InfillContext) -> Surroundings:
    line_prefix = context.prefix.rpartition("\n")[2]
    head = line_prefix if line_prefix.strip() else _last_line(context.prefix)
    following = context.between[0] if context.between else context.suffix
    below = next((line for line in following.split("\n")[1:] if line.strip()), "")
    if _OPENS_BLOCK.search(head) and columns(indent_of(below)) <= columns(indent_of(head)):
        return "body"
    return "statement"


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2]


def _one_statement(text: str, place: SyntaxPlace) -> str:
    """`text` up to the end of the statement that it completes or begins with.

    Where that was complete before the text, which then begins on a new line, one more.
    """
    line_prefix = place.context.prefix.rpartition("\n")[2]
    end = _statement_end(text, place) if line_prefix.strip() or text.strip() else None
    if end is None:
        return _one_statement_by_line(text, line_prefix)
    line_end = text.find("\n", end)
    return text if line_end < 0 else text[:line_end]


def _statement_end(text: str, place: SyntaxPlace) -> int | None:
    """Where in `text` its first statement ends; None when the tree does not say."""
    filled = place.tree_with(text)
    if filled is None:
        return None
    line_prefix = place.context.prefix.rpartition("\n")[2]
    goes_on = bool(line_prefix.strip()) and not text.startswith("\n")
    if goes_on:
        indent = len(indent_of(line_prefix))
        start = filled.start - len(line_prefix[indent:].encode("utf-8", "replace"))
    else:
        lead = len(text) - len(text.lstrip())
        start = filled.start + len(text[:lead].encode("utf-8", "replace"))
    node = _statement_at(filled, start)
    while node is not None and _LEADS.search(node.type) and node.end_byte < filled.end:
        node = node.next_named_sibling
    if node is None or node.has_error:
        return None
    inside = text.encode("utf-8", "replace")[: max(node.end_byte - filled.start, 0)]
    return len(inside.decode("utf-8", "replace"))


def _statement_at(filled: FilledTree, start: int) -> Node | None:
    """The outermost node that begins at byte `start` within a body."""
    node = filled.tree.root_node.descendant_for_byte_range(start, start)
    while node is not None and node.parent is not None:
        if node.is_named and node.parent.type in _BODIES and node.start_byte == start:
            return None if node.is_error else node
        if node.parent.is_error:
            return None
        node = node.parent
    return None


def _one_statement_by_line(text: str, line_prefix: str) -> str:
    """The same by lines: a line that opens a block takes along what is indented deeper, and what
    closes it; brackets that a line leaves open take along the lines up to where they are closed."""
    lines = text.split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    head = line_prefix + lines[0] if first == 0 else lines[first]
    base = columns(indent_of(head))
    end = first + 1
    while end < len(lines):
        line = lines[end]
        is_open = bool(Balance.of("\n".join(lines[:end]), "").opened)
        deeper = columns(indent_of(line)) > base and _OPENS_BLOCK.search(head)
        closes = _OPENS_BLOCK.search(head) and (_CLOSES_BLOCK.match(line) or _GOES_ON.match(line))
        if line.strip() and not (is_open or deeper or closes):
            break
        end += 1
    return "\n".join(lines[:end])
