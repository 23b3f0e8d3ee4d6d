"""Where the brackets of source text are: those that are no part of a comment, string and the like.

A syntax tree knows. Where there is none, in a part of a text and in languages without a grammar
here, patterns for what a language has of comments and strings stand in. The tests hold them against
Pygments' lexers, which know the same and would take too long at every suggestion. A language is
left out where a bracket need not have a partner (Markdown, YAML, TeX), where one language nests in
another (Vue) and where it takes a parser to find the strings (Perl).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from tree_sitter import Language, Query, QueryCursor, Tree

BRACKETS = "()[]{}"


def _quoted(quote: str, inside: str) -> str:
    return f"{quote}(?:{inside})*{quote}"


_DOUBLE, _SINGLE, _BACKTICK = (_quoted(q, rf"\\.|[^{q}\\\n]") for q in "\"'`")
_DOUBLE_LINES, _SINGLE_LINES, _TEMPLATE = (_quoted(q, rf"(?s:\\.)|[^{q}\\]") for q in "\"'`")
_TRIPLE, _TRIPLE_SINGLE = (rf"{q}{q}{q}(?s:\\.|.)*?(?:{q}{q}{q}|\Z)" for q in "\"'")
_SQL_STRINGS = (_quoted(q, rf"[^{q}\\]|{q}{q}|\\[^{q}]") for q in "\"'`")
# A lone quote is a lifetime in Rust, a part of a name in Haskell, an apostrophe in prose.
_CHARACTER = r"'(?:\\[^\n]{1,10}?|[^'\\\n])'"
# What these do not match is in doubt: strings within the code within a string.
_DOLLAR, _DOLLAR_SINGLE = (
    _quoted(q, rf"\\.|\$\{{[^{{}}{q}\n]*\}}|\$(?!\{{)|[^{q}\\$\n]") for q in "\"'"
)
_SWIFT_STRING = _quoted('"', r'\\[^(\n]|\\\((?:[^()"\n]|\([^()"\n]*\))*\)|[^"\\\n]')

_SLASHES, _DASHES, _HASH, _SEMICOLON = (rf"{mark}[^\n]*" for mark in ("//", "--", "#", ";"))
_HASH_AFTER_SPACE = r"(?:^|(?<=\s))#[^\n]*"
_BLOCK = r"/\*(?s:.*?)(?:\*/|\Z)"
_NESTED_BLOCK = r"/\*(?s:/\*.*?\*/|.)*?(?:\*/|\Z)"
_CSS_URL = r"\burl\([^()\n]*\)"
_LUA_LONG = r"(?:--)?\[(?P<level>=*)\[(?s:.*?)(?:\](?P=level)\]|\Z)"
_HEREDOC = r"<<[-~]?(?P<mark>\w+)\n(?s:.*?)(?:^[ \t]*(?P=mark)\b|\Z)"
_SQL_DOLLARS = r"\$(?P<tag>\w*)\$(?s:.*?)(?:\$(?P=tag)\$|\Z)"

_C = (_SLASHES, _BLOCK, _DOUBLE, _CHARACTER)
_OPAQUE: dict[str, Iterable[str]] = {
    "c cpp cuda-cpp objective-c objective-cpp": _C,
    "clojure": (_SEMICOLON, _DOUBLE_LINES, r"\\."),
    "csharp cs": (r'\$?@\$?"(?:[^"]|"")*"', _TRIPLE, *_C),
    "css": (_BLOCK, _CSS_URL, _DOUBLE, _SINGLE),
    "dart": (_SLASHES, _NESTED_BLOCK, _TRIPLE, _TRIPLE_SINGLE, _DOLLAR, _DOLLAR_SINGLE),
    "go": (*_C, r"`[^`]*`"),
    "haskell": (r"\{-(?s:.*?)(?:-\}|\Z)", _DASHES, _DOUBLE, r"\w+'+", _CHARACTER),
    "java": (_TRIPLE, *_C),
    "javascript javascriptreact typescript typescriptreact": (
        *(_SLASHES, _BLOCK, _DOUBLE, _SINGLE, _TEMPLATE),
    ),
    "json jsonc": (_SLASHES, _BLOCK, _DOUBLE),
    "julia": (r"#=(?s:.*?)(?:=#|\Z)", _HASH, _TRIPLE, _DOUBLE_LINES, _BACKTICK, _CHARACTER),
    "kotlin": (_SLASHES, _NESTED_BLOCK, _TRIPLE, _DOLLAR, _CHARACTER),
    "lua": (_LUA_LONG, _DASHES, _DOUBLE, _SINGLE),
    "php": (_SLASHES, _BLOCK, _DOUBLE, _SINGLE, _HASH_AFTER_SPACE),
    "proto3": (_SLASHES, _BLOCK, _DOUBLE, _SINGLE),
    "python": (_HASH, _TRIPLE, _TRIPLE_SINGLE, _DOUBLE, _SINGLE),
    "r": (_HASH, _DOUBLE_LINES, _SINGLE_LINES, _BACKTICK),
    "ruby": (_HASH_AFTER_SPACE, _DOUBLE, _SINGLE, _BACKTICK),
    "rust": (_SLASHES, _NESTED_BLOCK, _DOUBLE_LINES, _CHARACTER),
    "scala": (_SLASHES, _NESTED_BLOCK, _TRIPLE, _DOLLAR, _CHARACTER),
    "scss less": (_SLASHES, _BLOCK, _CSS_URL, _DOUBLE, _SINGLE),
    "shellscript sh bash": (_HASH_AFTER_SPACE, _DOUBLE, _SINGLE),
    "sql": (_DASHES, _BLOCK, _SQL_DOLLARS, *_SQL_STRINGS),
    "swift": (_SLASHES, _NESTED_BLOCK, _TRIPLE, _SWIFT_STRING),
    "terraform": (_HASH, _SLASHES, _BLOCK, _HEREDOC, _DOLLAR),
    "toml": (_HASH, _TRIPLE, _TRIPLE_SINGLE, _DOUBLE, r"'[^'\n]*'"),
    "zig": (_SLASHES, r"\\\\[^\n]*", _DOUBLE, _CHARACTER),
}


_OPAQUE_IN = {name: opaque for names, opaque in _OPAQUE.items() for name in names.split()}
_OPAQUE_ELSEWHERE = (_DOUBLE, _CHARACTER)


@lru_cache(maxsize=64)
def _pattern(language: str) -> re.Pattern[str]:
    opaque = tuple(_OPAQUE_IN.get(language, _OPAQUE_ELSEWHERE))
    quotes = {pattern[0] for pattern in opaque if pattern != _CHARACTER} & set("\"'`")
    unclosed = rf"(?P<unclosed>[{''.join(sorted(quotes))}][^\n]*)"
    bracket = rf"(?P<bracket>[{re.escape(BRACKETS)}])"
    return re.compile("|".join((*opaque, bracket, unclosed)), re.MULTILINE)


def brackets(text: str, language: str) -> list[tuple[int, str]]:
    """Offset and character of each bracket of `text`, as far as one can tell.

    `text` may be a part of a document; a string that it does not end goes on to the line's end.
    """
    matches = _pattern(language).finditer(text)
    return [(match.start(), match.group()) for match in matches if match["bracket"]]


def certain_brackets(text: str, language: str) -> list[tuple[int, str]] | None:
    """The same of a whole document; None where they are in doubt."""
    if language not in _OPAQUE_IN:
        return None
    matches = list(_pattern(language).finditer(text))
    if any(match["unclosed"] for match in matches):
        return None
    return [(match.start(), match.group()) for match in matches if match["bracket"]]


def brackets_of_tree(tree: Tree) -> list[tuple[int, str]]:
    """The same by the syntax tree of a document; the offsets are in bytes."""
    captures = QueryCursor(_query(tree.language)).captures(tree.root_node)
    unpaired = {node.start_byte for node in captures.get("unpaired", ())}
    nodes = [node for node in captures.get("bracket", ()) if node.start_byte not in unpaired]
    return sorted(
        (node.start_byte + index, chr(byte))
        for node in nodes
        for index, byte in enumerate(node.text or b"")
        if chr(byte) in BRACKETS
    )


@lru_cache(maxsize=32)
def _query(language: Language) -> Query:
    all_kinds = range(language.node_kind_count)
    kinds = {language.node_kind_for_id(i) for i in all_kinds if not language.node_kind_is_named(i)}
    literals = [kind for kind in kinds if kind and not set(BRACKETS).isdisjoint(kind)]
    query = "".join(f'"{literal}" @bracket\n'.replace("\\", r"\\") for literal in literals)
    if language.id_for_node_kind("case_item", True):  # a shell's `a) …;;`
        query += '(case_item ["(" ")"] @unpaired)'
    return Query(language, query)
