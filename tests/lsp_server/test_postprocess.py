"""What is left of a text at one cursor; the golden files have more cases, language by language."""

from __future__ import annotations

import pytest

from lsp_server.check.postprocess import worth_inserting
from lsp_server.check.syntax import SyntaxChecker, SyntaxPlace
from lsp_server.document.context import InfillContext


def inserted(language: str, prefix: str, text: str, suffix: str = "\n") -> str:
    context = InfillContext(prefix=prefix, suffix=suffix, language=language)
    return worth_inserting(text, SyntaxPlace(SyntaxChecker(), context), explicit=True)


@pytest.mark.parametrize(
    ("language", "prefix", "text", "left"),
    [
        # What the line has is said again: by the first line alone, or by all of them.
        ("python", "def f():\n    ", "    a = 1\n    b = 2", "a = 1\n    b = 2"),
        ("python", "def f():\n    ", "    a = 1\n        b = 2", "a = 1\n    b = 2"),
        (
            "python",
            "def f():\n    ",
            "    if a:\n        b = 1\n    c()",
            "if a:\n        b = 1\n    c()",
        ),
        (
            "python",
            "def f():\n    ",
            "    if a:\n            b = 1\n        c()",
            "if a:\n        b = 1\n    c()",
        ),
        ("python", "def f():\n    if a:\n        ", "        return 1", "return 1"),
        ("python", "def f():\n    a = 1\n    ", "    return a", "return a"),
        ("python", "def f():\n    a = g(\n        1)\n    ", "    return a", "return a"),
        ("python", "def f():\n  a = 1\n  ", "    return a", "return a"),
        ("go", "func f() {\n\t", "\ta()\n\tb()", "a()\n\tb()"),
        ("go", "func f() {\n\tif a {\n\t\t", "\t\ta()", "a()"),
        ("javascript", "function f() {\n  ", "  a();\n  b();", "a();\n  b();"),
        ("javascript", "f(() => {\n  a();\n});\n\nif (b) {\n  ", "  c();", "c();"),
        ("lua", "function f()\n  if a then\n    ", "    b()", "b()"),
        ("ruby", "def f\n  a do\n    ", "    b", "b"),
        ("yaml", "a:\n  b: 1\n  ", "  c: 2", "c: 2"),
        ("python", "if a:\n        if b:\n            c()\n        ", "        d()", "d()"),
        ("python", "if a:\n    if b:\n        return c\n    ", "    d()", "d()"),
        # The line is not indented as far as it may be.
        ("python", "def f():\n    if a:\n    ", "    return 1", "    return 1"),
        ("python", "def f():\n    if a:\n    ", "        return 1", "    return 1"),
        ("python", "def f():\n    if a:\n  ", "      return 1", "      return 1"),
        ("python", "if a:\n    if b:\n        c()\n    ", "    d()", "    d()"),
        ("ruby", "def f\n  if a\n  ", "  b", "  b"),
        ("lua", "for a in b do\n  local function f()\n  ", "  c()", "  c()"),
        ("c", "void f() {\n  if (a)\n  ", "  b();", "  b();"),
        # A line may be aligned with an open bracket, or go on with the one above.
        ("python", "a = f(b,\n    ", "  c)", "  c)"),
        ("javascript", "f(() => {\n  a = b\n  ", "  .c()", "  .c()"),
        ("javascript", "function f() {\n  return a\n  ", "  && b;", "  && b;"),
        ("java", "class A {\n    int a = b\n    ", "    + c;", "    + c;"),
    ],
)
def test_a_first_line_goes_no_deeper_than_what_is_above_lets_it(
    language: str, prefix: str, text: str, left: str
):
    assert inserted(language, prefix, text) == left


@pytest.mark.parametrize(
    ("language", "prefix", "text", "suffix", "left"),
    [
        ("css", "a { color:", " red ", ";\n}\n", " red"),
        ("css", "a { color: ", "red; ", "\n}\n", "red;"),
        ("css", "a { color: ", "red;\t", "\r\n}\r\n", "red;"),
        ("css", "a { margin: ", "0 ", "", "0"),
        ("python", "f(", "a ", ", b)\n", "a"),
        ("javascript", "const a = [", " 1 ", "]\n", " 1 "),  # a style
    ],
)
def test_no_blank_is_left_before_a_line_end_or_a_separator(
    language: str, prefix: str, text: str, suffix: str, left: str
):
    assert inserted(language, prefix, text, suffix) == left
