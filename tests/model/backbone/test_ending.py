"""Where a middle ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.backbone.ending import Ending


def kept(text: str, following: str = "", **rules: int) -> str:
    """What a model's text is cut to that comes character by character."""
    ending = Ending(following, **rules)
    for length in range(len(text) + 1):
        cut = ending.cut(text[:length])
        if cut is not None:
            return text[:cut]
    return text


def test_nothing_ends_a_text_without_rules():
    assert kept("a\nb\n\n\nc") == "a\nb\n\n\nc"


@pytest.mark.parametrize(("lines", "text"), [(1, "a"), (2, "a\n  b"), (9, "a\n  b\nc")])
def test_as_many_lines_as_are_wanted(lines, text):
    assert kept("a\n  b\nc", max_lines=lines) == text


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("a\n    b\n  x", 4, "a\n    b"),
        ("a\n    b\n\n  x", 4, "a\n    b\n"),
        ("a\n\tb\n\n\tc\nx", 4, "a\n\tb\n\n\tc"),  # a tab is four columns
        ("a\n  \tb\nx", 4, "a\n  \tb"),  # wherever it begins
        ("f(\n    a,\n)\nb", 1, "f(\n    a,\n)"),
        ("f(\n    a,\n) + b\nx", 1, "f(\n    a,\n) + b"),
        ("f(\n    a,\n) + b\nx", 2, "f(\n    a,"),
        ("{\n      a\n  });\nb", 4, "{\n      a\n  });"),
        ("if a\n  b\nend\nc", 1, "if a\n  b\nend"),
        ("if a:\n    b\nelse:\n    c\nx", 1, "if a:\n    b\nelse:\n    c"),
        ("if (a) {\n  b\n} else {\n  c\n}\nx", 1, "if (a) {\n  b\n} else {\n  c\n}"),
        ("for x\n{\n  a\n}\nx", 1, "for x\n{\n  a\n}"),
        ("# why\nx = 1\ny = 2", 1, "# why\nx = 1"),
        ("    b\nelse:\n    c", 4, "    b"),  # of a block further out
        ("a\nelsewhere = 1", 1, "a"),
        ("a\nendless = 1", 1, "a"),
    ],
)
def test_a_line_indented_less_ends_it_unless_it_closes_or_goes_on(text, columns, shown):
    assert kept(text, min_indent=columns) == shown


def test_what_follows_is_not_said_again():
    following = "\n    return total(a)\n"
    assert kept("b = 1\n    return total(a)", following) == "b = 1"
    assert kept("b = 1\n        return total(a)", following) == "b = 1"


@given(
    text=st.lists(st.sampled_from(["a", "}", ")", "else:", " ", "\t", "\n", "\n    "])).map(
        "".join
    ),
    following=st.sampled_from(["", "\n", "\nelse:\n", ")\n", "\n    a a a a a a a\n"]),
    lines=st.none() | st.integers(1, 4),
    columns=st.none() | st.integers(0, 5),
)
def test_what_is_sure_stays_whatever_comes(text, following, lines, columns):
    ending = Ending(following, lines, columns)
    whole, sure = len(text), 0
    for length in range(len(text) + 1):
        sure = max(sure, ending.sure(text[:length]))
        cut = ending.cut(text[:length])
        if cut is not None:
            whole = cut
            break
    assert sure <= whole
