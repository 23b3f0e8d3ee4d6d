"""The document's indentation, and text brought into it."""

from __future__ import annotations

import pytest

from lsp_server.check.indentation import IndentStyle, indent_style
from lsp_server.document.context import InfillContext

TABS = IndentStyle(uses_tabs=True, width=4)
SPACES = IndentStyle(uses_tabs=False, width=2)


@pytest.mark.parametrize(
    ("prefix", "suffix", "style"),
    [
        ("if a:\n    b\n", "", IndentStyle(uses_tabs=False, width=4)),
        ("{\n  a\n  {\n    b\n", "", SPACES),
        ("{\n\ta\n", "", TABS),
        ("", "\n\ta\n\tb\n  c\n", TABS),
        ("def f():\n  ", "", SPACES),
        ("a\nb\n", "\nc", None),
    ],
)
def test_the_style_is_that_of_most_lines(prefix, suffix, style):
    assert indent_style(InfillContext(prefix=prefix, suffix=suffix)) == style


@pytest.mark.parametrize(
    ("style", "text", "adopted"),
    [
        (SPACES, "a\n\tb\n\t\tc", "a\n  b\n    c"),
        (TABS, "a\n    b\n        c", "a\n\tb\n\t\tc"),
        (TABS, "f(a,\n  b)", "f(a,\n  b)"),  # alignment, not a level
        (SPACES, "a\n   b", "a\n   b"),
        (TABS, "x = '    '", "x = '    '"),
    ],
)
def test_lines_take_on_the_style(style, text, adopted):
    assert style.adopt(text, from_line_start=False) == adopted


def test_the_first_line_has_an_indentation_only_at_a_lines_start():
    assert TABS.adopt("    a", from_line_start=True) == "\ta"
    assert TABS.adopt("    a", from_line_start=False) == "    a"
