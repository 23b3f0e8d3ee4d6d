"""How far a completion may reach is known before it is written."""

from __future__ import annotations

import pytest

from lsp_server.check.extent import Reach, reach
from lsp_server.check.syntax import SyntaxChecker, SyntaxPlace
from lsp_server.document.context import InfillContext


def reach_at(marked: str, language: str, *, explicit: bool = False) -> Reach:
    prefix, _, suffix = marked.partition("|")
    context = InfillContext(prefix=prefix, suffix=suffix, language=language)
    return reach(SyntaxPlace(SyntaxChecker(), context), explicit=explicit)


ONE_LINE = Reach(max_lines=1)


@pytest.mark.parametrize(
    ("marked", "language"),
    [
        ("x = f(a, |)\n", "python"),
        ("x = | + 1\n", "python"),
        ("print('|')\n", "python"),
        ("x = f(a, |\n", "python"),
        ("const x = [1, |\n", "javascript"),
    ],
)
def test_one_line_where_more_text_follows_on_it_or_a_bracket_is_open(marked: str, language: str):
    assert reach_at(marked, language) == ONE_LINE
    assert reach_at(marked, language, explicit=True).max_lines is None


@pytest.mark.parametrize(
    ("marked", "language"), [("x = f(|)\n", "python"), ("let x = {|};\n", "javascript")]
)
def test_a_pair_of_brackets_may_be_spread_over_lines(marked: str, language: str):
    assert reach_at(marked, language) == Reach()


@pytest.mark.parametrize(
    ("marked", "language", "columns"),
    [
        # The body of a block: what is indented as it is.
        ("def f():\n    |\n", "python", 4),
        ("def f():|\n", "python", 1),
        ("class A:\n    def f(self):\n        |\n\n    def g(self): ...\n", "python", 8),
        ("func f() {\n\t|\n}\n", "go", 4),
        # A statement that the line begins: what is indented deeper.
        ("def f():\n    x = 1\n    |\n", "python", 5),
        ("def f():\n    x = 1\n    y = |\n", "python", 5),
        ("int f() {\n  int a = 1;\n  a = |\n}\n", "c", 3),
        # One that is whole: the next one, too.
        ("def f():\n    x = 1\n    y = 2|\n", "python", 4),
        # No grammar: by the line above.
        ("a\n  b = 1\n  |", "klingon", 3),
    ],
)
def test_a_block_ends_where_a_line_is_indented_less(marked: str, language: str, columns: int):
    assert reach_at(marked, language) == Reach(min_indent=columns)


def test_who_asks_gets_the_rest_of_the_block():
    marked = "def f():\n    x = 1\n    y = |\n"
    assert reach_at(marked, "python", explicit=True) == Reach(min_indent=4)


def test_at_the_left_edge_a_person_gets_what_comes():
    assert reach_at("x = 1\n|\n", "python", explicit=True) == Reach()
    assert reach_at("x = 1\n|\n", "python") == Reach(min_indent=1)
