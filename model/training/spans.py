"""Where a syntax tree suggests holes: block bodies, argument lists, conditions, statements...

Computed once, when a corpus is packed, so that training needs no tree-sitter. The queries below
name the node types of each language; a language without a query has no spans, and its holes are
cut along lines and characters only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice, zip_longest

import numpy as np
from tree_sitter import Node, Parser, Query, QueryCursor, Tree

from model.grammars import GRAMMARS, load_grammar

MAX_SPAN_CHARS = 600
"""A longer span fits no canvas."""
CHARS_PER_SPAN = 55
"""A file keeps at most one span for so many characters: shards then grow by less than 40 %."""

_BRACKETS = {b"(": b")", b"[": b"]", b"{": b"}", b"<": b">", b"|": b"|"}

_PYTHON = """
(block) @block
[(argument_list) (generator_expression)] @arguments
[(parameters) (lambda_parameters)] @parameters
[(if_statement condition: (_) @condition) (elif_clause condition: (_) @condition)
 (while_statement condition: (_) @condition) (for_statement right: (_) @condition)]
(string_content) @string
[(assignment right: (_) @value) (augmented_assignment right: (_) @value)
 (keyword_argument value: (_) @value) (pair value: (_) @value) (named_expression value: (_) @value)
 (lambda body: (_) @value) (subscript subscript: (_) @value)]
(return_statement (_) @return)
[(list) (dictionary) (set) (tuple) (list_comprehension)] @elements
"""
_JAVASCRIPT = """
[(statement_block) (class_body)] @block
(arguments) @arguments
(formal_parameters) @parameters
(parenthesized_expression) @condition
(string_fragment) @string
[(variable_declarator value: (_) @value) (assignment_expression right: (_) @value)
 (pair value: (_) @value) (arrow_function body: (_) @value)]
(return_statement (_) @return)
[(object) (array) (object_pattern)] @elements
"""
_TYPESCRIPT = (
    _JAVASCRIPT
    + """
[(interface_body) (object_type)] @block
[(type_annotation (_) @value) (type_arguments) @arguments]
"""
)
_GO = """
(block) @block
(argument_list) @arguments
(parameter_list) @parameters
[(if_statement condition: (_) @condition) (for_clause condition: (_) @condition)
 (range_clause right: (_) @condition)]
(interpreted_string_literal_content) @string
[(short_var_declaration right: (_) @value) (assignment_statement right: (_) @value)
 (var_spec value: (_) @value) (keyed_element) @value]
(return_statement (_) @return)
[(literal_value) (field_declaration_list)] @elements
"""
_RUST = """
[(block) (declaration_list) (match_block)] @block
[(arguments) (token_tree) (type_arguments)] @arguments
[(parameters) (closure_parameters)] @parameters
[(if_expression condition: (_) @condition) (while_expression condition: (_) @condition)
 (match_expression value: (_) @condition) (for_expression value: (_) @condition)]
(string_content) @string
[(let_declaration value: (_) @value) (assignment_expression right: (_) @value)
 (match_arm value: (_) @value) (field_initializer) @value (closure_expression body: (_) @value)]
(return_expression (_) @return)
[(field_declaration_list) (field_initializer_list) (array_expression)] @elements
"""
_JAVA = """
[(block) (class_body) (constructor_body) (interface_body)] @block
[(argument_list) (type_arguments)] @arguments
(formal_parameters) @parameters
[(parenthesized_expression) (enhanced_for_statement value: (_))] @condition
(string_fragment) @string
[(variable_declarator value: (_) @value) (assignment_expression right: (_) @value)
 (lambda_expression body: (_) @value)]
(return_statement (_) @return)
(array_initializer) @elements
"""
_C = """
[(compound_statement) (field_declaration_list)] @block
(argument_list) @arguments
(parameter_list) @parameters
(parenthesized_expression) @condition
(string_content) @string
[(init_declarator value: (_) @value) (assignment_expression right: (_) @value)]
(return_statement (_) @return)
[(initializer_list) (enumerator_list)] @elements
"""
_CPP = _C + "[(condition_clause) @condition (template_argument_list) @arguments]\n"
_QUERIES = {
    "python": _PYTHON,
    "javascript": _JAVASCRIPT,
    "typescript": _TYPESCRIPT,
    "typescriptreact": _TYPESCRIPT,
    "go": _GO,
    "rust": _RUST,
    "java": _JAVA,
    "c": _C,
    "cpp": _CPP,
}


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a file, and what stands there (a capture name, `statements`)."""

    start: int
    end: int
    kind: str


@cache
def _parser_and_query(language: str) -> tuple[Parser, Query]:
    grammar = load_grammar(GRAMMARS[language])
    return Parser(grammar), Query(grammar, _QUERIES[language])


_PYTHON_2 = "[(print_statement) (exec_statement)] @old"


@lru_cache(maxsize=1)
def _tree(text: str, language: str) -> Tree:
    return _parser_and_query(language)[0].parse(text.encode("utf-8", "replace"))


def is_sound(text: str, language: str) -> bool:
    """Whether Python parses as Python 3. Of other languages always: macros look like errors."""
    if language != "python":
        return True
    root = _tree(text, language).root_node
    return not root.has_error and not QueryCursor(_python_2()).captures(root)


@cache
def _python_2() -> Query:
    return Query(load_grammar(GRAMMARS["python"]), _PYTHON_2)


def syntax_spans(text: str, language: str) -> list[Span]:
    """Spans of `text` that an editor would have filled, sorted, without brackets around them.

    At most one for every `CHARS_PER_SPAN` characters, of all kinds about as many; the choice is
    the same for the same text. Empty for a language without a query.
    """
    if language not in _QUERIES:
        return []
    query = _parser_and_query(language)[1]
    data = text.encode("utf-8", "replace")
    root = _tree(text, language).root_node
    spans: dict[tuple[int, int], str] = {}
    # Sorted, as tree-sitter gives captures in no fixed order.
    for start, end, kind in sorted(_candidates(data, root, query)):
        end = start + len(data[start:end].rstrip())  # some nodes take their line's end with them
        if 0 < end - start <= MAX_SPAN_CHARS:
            spans.setdefault((start, end), kind)
    chars = _char_offsets(data)
    found = [Span(int(chars[a]), int(chars[b]), kind) for (a, b), kind in spans.items()]
    chosen = _balanced(found, len(text) // CHARS_PER_SPAN)
    return sorted(chosen, key=lambda span: (span.start, span.end))


def _candidates(data: bytes, root: Node, query: Query) -> Iterator[tuple[int, int, str]]:
    """(start byte, end byte, kind), with repeats."""
    captures = QueryCursor(query).captures(root)
    for kind, nodes in captures.items():
        for node in nodes:
            yield (*_without_brackets(data, node), kind)
    for block in (root, *captures.get("block", ())):
        yield from _statements(block)


def _statements(block: Node) -> Iterator[tuple[int, int, str]]:
    """Each statement of a block, and runs of two to four that begin at it."""
    statements = block.named_children
    if len(statements) == 1 and statements[0].type == "statement_list":  # Go
        statements = statements[0].named_children
    # A line of comment is no statement; between statements it belongs to what is written.
    statements = [s for s in statements if "comment" not in s.type]
    for i, statement in enumerate(statements):
        yield statement.start_byte, statement.end_byte, "statement"
        last = statements[min(i + 1 + i % 3, len(statements) - 1)]
        yield statement.start_byte, last.end_byte, "statements"


def _without_brackets(data: bytes, node: Node) -> tuple[int, int]:
    start, end = node.start_byte, node.end_byte
    if _BRACKETS.get(data[start : start + 1]) == data[end - 1 : end] and end - start > 1:
        inner = data[start + 1 : end - 1]
        start += 1 + len(inner) - len(inner.lstrip())
        end = start + len(inner.strip())
    return start, end


def _char_offsets(data: bytes) -> np.ndarray | range:
    """The number of characters before each byte, and before the end."""
    if data.isascii():
        return range(len(data) + 1)
    starts_char = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80
    return np.concatenate(([0], np.cumsum(starts_char)))


def _balanced(spans: list[Span], limit: int) -> list[Span]:
    """At most `limit` spans: of each kind in turn, chosen at random (but always the same)."""
    if len(spans) <= limit:
        return spans
    rng = random.Random(len(spans))
    rng.shuffle(spans)
    kinds: dict[str, list[Span]] = {}
    for span in spans:
        kinds.setdefault(span.kind, []).append(span)
    in_turn = zip_longest(*kinds.values())
    return list(islice((span for turn in in_turn for span in turn if span), limit))
