"""Does a program parse? By Python's own parser for Python, by tree-sitter for other languages.

(The language server's check is another one: it tells a candidate's own errors from a document's.
Here the true document parses, and so must the filled one.)
"""

from __future__ import annotations

import ast
import warnings
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Parser


def parses(text: str, language: str) -> bool | None:
    """Whether `text` is a program of `language` (LSP id); None when no parser is installed."""
    if language == "python":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "invalid escape sequence" is no syntax error
                ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False  # ValueError: a null byte; the others: nested too deep
        return True
    parser = _parser(language)
    if parser is None:
        return None
    return not parser.parse(text.encode("utf-8", "replace")).root_node.has_error


@cache
def _parser(language: str) -> Parser | None:
    try:
        from tree_sitter import Parser  # which a GPU box may lack

        from model.grammars import GRAMMARS, load_grammar

        return Parser(load_grammar(GRAMMARS[language])) if language in GRAMMARS else None
    except ImportError:
        return None
