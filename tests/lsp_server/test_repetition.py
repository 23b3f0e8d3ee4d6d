"""What a text says twice, and that finding it takes no longer than the text is long."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsp_server.check.repetition import is_similar, without_loops

LOOPS = (r"(.{3,}?)\1{5,}$", r"(.{10,}?)\1{3,}$")
"""What a loop is; sought like this, in a time that grows with the cube of the line."""


@given(
    start=st.text("ab ", max_size=20),
    block=st.text("abc", max_size=12),
    times=st.integers(1, 8),
    end=st.text("a", max_size=1),
)
def test_a_last_line_goes_where_it_goes_round_in_circles(start, block, times, end):
    line = start + block * times + end
    goes = any(re.search(loop, line) for loop in LOOPS)
    assert without_loops("x = 1\n" + line) == ("x = 1" if goes else "x = 1\n" + line)


LONG = "return the_first_value_of(everything, that=is_here)"
WORDS = ["the", "of", "and", "to", "in", "that", "for", "it", "was", "with", "by", "not"]


@pytest.mark.parametrize(
    ("line", "other", "similar"),
    [
        ("x = 1", " x  =1 ", True),
        ("x = 1", "x = 2", False),  # too short for a difference
        (LONG, LONG.replace("first", "fist"), True),
        (LONG, LONG.replace("first_value", "last"), False),
        (LONG + " + 10", LONG + " + 11", False),  # a number is the same or not
        (LONG * 9, LONG * 8 + LONG.replace("first", "fist"), True),
        (LONG * 99, "  " + LONG * 99, True),
        (LONG * 99, LONG * 98 + LONG.replace("first", "fist"), False),  # too long to compare
        (LONG * 99, LONG, False),
    ],
)
def test_long_lines_may_differ_in_a_character_or_two(line, other, similar):
    assert is_similar(line, other) is similar
    assert is_similar(other, line) is similar


@pytest.mark.timeout(60)  # a watchdog: what grows with the square of the line takes far longer
def test_lines_of_a_hundred_thousand_characters_are_compared_at_once():
    random.seed(1)
    one, other = (" ".join(random.choices(WORDS, k=30_000)) for _ in range(2))
    assert not is_similar(one, other)
    for line in (one, "x" * 100_000 + "y", "ab" * 50_000 + "y", "(" * 100_000 + ")"):
        assert without_loops(line) == line
