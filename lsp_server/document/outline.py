"""What a document declares and what it imports, by its syntax tree.

One reading for all grammars: a declaration is a node of the top level, or of a class, that has a
body, and its signature is all before that body; what declares data is short and taken whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tree_sitter import Node, Parser

from model.grammars import GRAMMARS, load_grammar

MAX_LINES = 16
"""Of one declaration: the longest classes show their first members."""

_HOLDS_MEMBERS = re.compile(r"class|impl|trait|module|namespace|mod_item|object")
_HOLDS_DATA = re.compile(r"struct|enum|interface|type|union|record")
_IMPORTS = re.compile(r"import|use_declaration|include|using_directive|require")
_REQUIRED = re.compile(r"\brequire(?:_relative)?\s*(?:\(\s*)?[\"']([^\"']+)")
_WRAPS = re.compile(r"export|decorated|template|extern|linkage|preproc_if|declaration_list")
_NAMED_LIKE_ITS_CALL = re.compile(r"\b(\w+)\s*\(")
_BODY_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Declaration:
    """The signature of a function, or of a class and its members, or a data type."""

    name: str
    text: str
    """Whole lines, without the bodies."""
    line: int
    """Where it begins, 0-based."""


@dataclass(frozen=True, slots=True)
class Outline:
    """What a document offers to others, and whom it names as the ones it uses."""

    declarations: tuple[Declaration, ...] = ()
    imported: frozenset[str] = frozenset()
    """The words that its imports are made of: parts of module names and paths, and names."""


@lru_cache(maxsize=64)
def outline_of(text: str, language: str) -> Outline:
    """The outline of a document. Empty where no grammar knows the language."""
    grammar = GRAMMARS.get(language)
    if grammar is None:
        return Outline()
    source = text.encode("utf-8", "replace")
    nodes = list(_top_level(Parser(load_grammar(grammar)).parse(source).root_node))
    declared = (_declaration(node, source) for node in nodes if not _IMPORTS.search(node.type))
    imports = [_text(node, source) for node in nodes if _IMPORTS.search(node.type)]
    imports += _REQUIRED.findall(text)
    return Outline(
        tuple(declaration for declaration in declared if declaration),
        frozenset(re.findall(r"\w+", " ".join(imports))),
    )


def _top_level(node: Node) -> Iterator[Node]:
    """The nodes under `node`, those inside of exports, decorations and the like instead of them."""
    for child in node.named_children:
        if _WRAPS.search(child.type) and child.child_by_field_name("body") is None:
            yield from _top_level(child)
        else:
            yield child


def _declaration(node: Node, source: bytes) -> Declaration | None:
    body = _body_of(node)
    name = _name_of(node, source)
    if not name or (body is None and not _HOLDS_DATA.search(node.type)):
        return None
    text = _text(node, source)
    if body is not None and _HOLDS_MEMBERS.search(node.type):
        members = [(member, _body_of(member)) for member in _top_level(body)]
        signatures = [_signature(member, inner, source) for member, inner in members if inner]
        if signatures:  # else it holds nothing but data
            text = "\n".join((_signature(node, body, source), *signatures))
    elif body is not None and not _HOLDS_DATA.search(node.type):
        text = _signature(node, body, source)
    lines = text.split("\n")[:MAX_LINES]
    return Declaration(name, "\n".join(lines), node.start_point.row)


def _body_of(node: Node, depth: int = _BODY_DEPTH) -> Node | None:
    """The first body within `node`, such as that of a function which a constant is."""
    body = node.child_by_field_name("body")
    if body is None and depth > 0:
        inner = (_body_of(child, depth - 1) for child in node.named_children)
        body = next((found for found in inner if found), None)
    return body


def _name_of(node: Node, source: bytes) -> str:
    field = "type" if node.type == "impl_item" else "name"
    for child in (node, *node.named_children):
        name = child.child_by_field_name(field)
        if name is not None:
            return _text(name, source)
    called = _NAMED_LIKE_ITS_CALL.search(_text(node, source))
    return called.group(1) if called else ""


def _signature(node: Node, body: Node, source: bytes) -> str:
    """All of `node` before its body, with the indentation of its first line."""
    line = source.rfind(b"\n", 0, node.start_byte) + 1
    indentation = source[line : node.start_byte]
    start = node.start_byte if indentation.strip() else line
    return source[start : body.start_byte].decode("utf-8", "replace").rstrip().rstrip("{").rstrip()


def _text(node: Node, source: bytes) -> str:
    return source[node.start_byte : node.end_byte].decode("utf-8", "replace")
