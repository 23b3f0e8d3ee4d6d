"""Does a program parse? By Python's own parser for Python, by tree-sitter for other languages.

(The language server's check is another one: it tells a candidate's own errors from a document's.
Here the true document parses, and so must the filled one.)
"""

from __future__ import annotations

import ast
import importlib
import warnings
from functools import cache
from typing import Any

_GRAMMARS = {
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "csharp": ("tree_sitter_c_sharp", "language"),
    "go": ("tree_sitter_go", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "ruby": ("tree_sitter_ruby", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "shellscript": ("tree_sitter_bash", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
}


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
def _parser(language: str) -> Any:
    if language not in _GRAMMARS:
        return None
    module, entry_point = _GRAMMARS[language]
    try:
        tree_sitter = importlib.import_module("tree_sitter")
        grammar = getattr(importlib.import_module(module), entry_point)()
    except ImportError:
        return None
    return tree_sitter.Parser(tree_sitter.Language(grammar))
