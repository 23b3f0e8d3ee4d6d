"""Which brackets of a text the document closes already."""

from __future__ import annotations

import pytest
from test_lexis import SAMPLES

from lsp_server.check.brackets import Balance, without_doubled_closers
from lsp_server.check.syntax import SyntaxChecker, SyntaxPlace
from lsp_server.document.context import InfillContext


def kept(text: str, context: InfillContext) -> str:
    return without_doubled_closers(text, SyntaxPlace(SyntaxChecker(), context))


def test_the_balance_tells_what_is_closed_and_what_is_left_open():
    balance = Balance.of("a) + f([b, {", "python")
    assert balance.closed == ((1, ")"),)
    assert balance.opened == (")", "]", "}")


def test_a_text_may_close_a_bracket_and_open_another_in_its_place():
    context = InfillContext(prefix="foo(", suffix=")\n", language="python")
    assert kept("a).bar(b", context) == "a).bar(b"


def test_what_was_opened_further_up_than_the_window_is_no_double():
    context = InfillContext(prefix="  b", suffix=";\n}\n", starts_file=False, language="c")
    assert kept("();\n}", context) == "();\n}"


@pytest.mark.parametrize("language", ["python", "lua", "kotlin", "sql"])
def test_what_nobody_opened_is_not_closed(language: str):
    context = InfillContext(prefix="x = ", suffix="\n", language=language)
    assert kept("a)", context) == "a"
    context = InfillContext(prefix="f({ x = g(", suffix=" })\n", language=language)
    assert kept("a]", context) == "a"


def test_another_bracket_that_was_forgotten_takes_none_away():
    context = InfillContext(prefix="void f() {\n  g(;\n  if (a) {\n    ", suffix="\n", language="c")
    assert kept("b();\n  }\n}", context) == "b();\n  }\n}"


HEADS = {
    "c": "void f() {\n",
    "csharp": "class A { void F() {\n",
    "css": "a { b: ",
    "dart": "void f() {\n",
    "go": "package a\n\nfunc f() {\n",
    "java": "class A { void f() {\n",
    "javascript": "function f() {\n",
    "json": '{"a": [',
    "kotlin": "fun f() {\n",
    "php": "<?php\nfunction f() {\n",
    "rust": "fn f() {\n",
    "scala": "def f = {\n",
    "swift": "func f() {\n",
}
"""What goes on around the cursor and ends at the end of the document."""


@pytest.mark.parametrize("language", SAMPLES)
def test_brackets_in_comments_and_strings_around_change_nothing(language: str):
    head, sample = HEADS.get(language, ""), SAMPLES[language].removeprefix("<?php\n")
    tail = "".join(reversed(Balance.of(head, language).opened)) + "\n"
    own = {"json": "[1, [2", "shellscript": "a $(b $(c"}.get(language, "(1(2")
    closer = "]" if language == "json" else ")"
    for before, after in ((sample, ""), ("", sample), (sample, sample)):
        context = InfillContext(
            prefix=f"{head}{before}{own}", suffix=f"\n{after}{tail}", language=language
        )
        assert kept(closer * 2, context) == closer * 2
        assert kept(closer * 3, context) == closer * (3 if language == "json" else 2)


@pytest.mark.parametrize(
    ("language", "below"),
    [
        ("lua", "-- 1) a\n"),
        ("kotlin", "// 1) a\n}\n"),
        ("shellscript", "case $1 in\n  a) b ;;\nesac\n"),
        ("sh", "# :)\n"),
        ("javascript", "const r = /[)]/;\n"),
        ("javascriptreact", "const e = <p>1) a</p>;\n"),
        ("java", 'String a = """\n  1) b\n  """;\n'),
        ("cpp", 'auto a = R"())";\n'),
        ("ruby", "a = <<~X\n  1) b\nX\n"),
        ("php", "?>\n1) a\n"),
        ("markdown", "1) a\n"),
        ("yaml", "a: 1) b\n"),
        ("vue", "<p>1) a</p>\n"),
        ("elixir", "# 1) a\n"),
        ("a language that nobody knows", "# 1) a\n"),
    ],
)
def test_the_text_keeps_its_own_bracket(language: str, below: str):
    head = "<?php\n" if language == "php" else ""
    context = InfillContext(prefix=f"{head}width = read(", suffix=f"\n{below}", language=language)
    assert kept("path)", context) == "path)"
