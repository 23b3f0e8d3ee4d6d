"""Which tree-sitter grammar parses a language. No torch: the language server uses it too."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table alone is asked for where nothing is parsed
    from tree_sitter import Language

GRAMMARS = {
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "javascriptreact": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "typescriptreact": ("tree_sitter_typescript", "language_tsx"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "java": ("tree_sitter_java", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "csharp": ("tree_sitter_c_sharp", "language"),
    "ruby": ("tree_sitter_ruby", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "shellscript": ("tree_sitter_bash", "language"),
    "html": ("tree_sitter_html", "language"),
    "css": ("tree_sitter_css", "language"),
    "json": ("tree_sitter_json", "language"),
    "jsonc": ("tree_sitter_json", "language"),
    # File types that editors other than VS Code send as they are.
    "sh": ("tree_sitter_bash", "language"),
    "bash": ("tree_sitter_bash", "language"),
    "cs": ("tree_sitter_c_sharp", "language"),
}
"""Module and entry point of each LSP language id's grammar."""


def load_grammar(grammar: tuple[str, str]) -> Language:
    """Import a grammar by its module and entry point. Raises `ImportError` where it is missing."""
    from tree_sitter import Language

    module, entry_point = grammar
    pointer: object = getattr(importlib.import_module(module), entry_point)()
    return Language(pointer)
