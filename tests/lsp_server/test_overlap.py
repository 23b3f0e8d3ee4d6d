"""What follows the cursor is not said twice. (More of it in the golden files.)"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsp_server.check.overlap import without_overlap


@pytest.mark.parametrize(
    ("candidate", "following", "kept"),
    [
        ("a, b)", ")", "a, b"),  # the editor had closed the bracket already
        (", f(y)", ")", ", f(y)"),  # this bracket is the candidate's own
        ("f(y))", ")", "f(y)"),
        ('hello"', '")\n', "hello"),
        ('hello")', '")\n', "hello"),
        ('"a"', '"', '"a"'),  # a string of its own before a quote
        ("x, a, b):", "a, b):\n", "x, "),  # repeats the rest of the line
        ("x, ", "a, b", "x, "),  # the space belongs before what follows
        ("x ", " + 1", "x"),  # ... unless there is one
        ("return x  \n", "\n", "return x"),
        ("y = 1\n    return y", "\n    return y\n", "y = 1"),  # repeats the next line
        ("{\n    x\n}", "\n}\n", "{\n    x\n}"),  # closes its own block
        ("x\n}", "\n}\n", "x"),  # closes a block that is closed already
        ("x\n}", "", "x\n}"),
        ("max", "imum\n", "max"),
        ("   \n  ", "", ""),
        (")", ")\n", ""),
        ("a,b):", "a, b):\n", ""),  # but for its spaces
        ("max(x, a,b)", "a, b)\n", "max(x, "),
        ("(a)", "(a)\n", ""),
    ],
)
def test_what_stands_right_of_the_cursor_is_never_doubled(candidate, following, kept):
    assert without_overlap(candidate, following) == kept


@given(text=st.text("ab()[]\"' \n", max_size=30), following=st.text("ab()[]\"' \n", max_size=30))
def test_trimming_only_ever_shortens_from_the_end(text, following):
    kept = without_overlap(text, following)
    assert text.startswith(kept)
    assert kept == "" or kept.strip()
