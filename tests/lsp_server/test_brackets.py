"""Which brackets of a text count, and which the document closes already."""

from __future__ import annotations

import pytest

from lsp_server.brackets import Balance, brackets, without_doubled_closers
from lsp_server.context import InfillContext


@pytest.mark.parametrize(
    ("language", "text", "found"),
    [
        ("python", "f(\")\", '(')  # (\n]", "()]"),
        ("python", '"""(\n)"""[', "["),
        ("javascript", "`${f(}`[/* { */] // (", "[]"),
        ("rust", "fn f<'a>(x: &'a str) { '(' }", "(){}"),
        ("java", "'(' + \"{\" + (1)", "()"),
        ("shellscript", "a$#(b) # (", "()"),
        ("", "don't (do)", "()"),
    ],
)
def test_brackets_in_strings_and_comments_do_not_count(language, text, found):
    assert "".join(bracket for _, bracket in brackets(text, language)) == found


def test_the_balance_tells_what_is_closed_and_what_is_left_open():
    balance = Balance.of("a) + f([b, {", "python")
    assert balance.closed == ((1, ")"),)
    assert balance.opened == (")", "]", "}")


def test_a_text_may_close_a_bracket_and_open_another_in_its_place():
    context = InfillContext(prefix="foo(", suffix=")\n", language="python")
    assert without_doubled_closers("a).bar(b", context) == "a).bar(b"


def test_what_was_opened_further_up_than_the_window_is_no_double():
    context = InfillContext(prefix="  b", suffix=";\n}\n", starts_file=False, language="c")
    assert without_doubled_closers("();\n}", context) == "();\n}"


def test_what_nobody_opened_is_not_closed():
    context = InfillContext(prefix="x = ", suffix="\n", language="python")
    assert without_doubled_closers("a)", context) == "a"
