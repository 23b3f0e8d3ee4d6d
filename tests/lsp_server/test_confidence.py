"""How sure the model is of a part of its text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsp_server.check.confidence import (
    confidence_of,
    is_sure,
    least_of_further_lines,
    line_confidences,
    told,
    worthwhile_lengths,
)
from model.api import Candidate


def worthwhile_length(candidate: Candidate, length: int, least: float, **how: bool) -> int:
    return next(iter(worthwhile_lengths(candidate, length, least, **how)), 0)


def made(*tokens: tuple[str, float], end: float = 1.0) -> Candidate:
    text, ends = "", list[int]()
    for token, _ in tokens:
        text += token
        ends.append(len(text))
    probabilities = (*(p for _, p in tokens), end)
    return Candidate(
        texts=(text,),
        confidence=math.prod(probabilities),
        probabilities=probabilities,
        token_ends=tuple(ends),
    )


def test_a_whole_text_is_as_sure_as_the_model_says_its_end_included():
    assert confidence_of(made(("a", 0.5), ("b", 0.5), end=0.5), 2) == 0.125


def test_a_part_costs_its_own_tokens_only():
    candidate = made(("ab", 0.5), ("cd", 0.5), end=0.1)
    assert confidence_of(candidate, 2) == 0.5
    assert confidence_of(candidate, 3) == 0.25  # the cut goes through the second token


def test_without_tokens_a_part_is_as_sure_as_the_whole():
    assert confidence_of(Candidate(texts=("abc",), confidence=0.3), 1) == 0.3


@pytest.mark.parametrize(
    ("least", "kept"),
    [(0.8, "foo(a)"), (0.5, "foo(a).bar"), (0.95, ""), (0.1, "foo(a).bar")],
)
def test_a_text_is_kept_as_far_as_it_saves_the_most_typing(least, kept):
    # 0.9 x 5 keys, 0.54 x 9 keys, 0.108 x 11 keys.
    candidate = made(("foo(a)", 0.9), (".bar", 0.6), ("()", 0.2))
    assert candidate.text[: worthwhile_length(candidate, len(candidate.text), least)] == kept


def test_the_other_parts_follow_by_what_they_save():
    candidate = made(("foo(a)", 0.9), (".bar", 0.6), ("()", 0.2))
    lengths = worthwhile_lengths(candidate, len(candidate.text), 0.1)
    assert [candidate.text[:n] for n in lengths] == ["foo(a).bar", "foo(a)", "foo(a).bar()"]


def test_a_whole_text_may_end_as_it_likes():
    candidate = made(("foo", 0.9), ("(x)", 0.9))
    cut = len("foo(")  # through a token
    assert worthwhile_length(candidate, cut, 0.3) == cut
    assert worthwhile_length(candidate, cut, 0.3, may_be_whole=False) == len("foo")
    assert worthwhile_length(candidate, cut, 0.85) == len("foo")


def test_the_indentation_of_a_line_saves_nothing():
    candidate = made(("items = []", 0.9), ("\n            x", 0.5), (" = 1", 0.9))
    assert worthwhile_length(candidate, len(candidate.text), 0.3) == len("items = []")


def test_of_several_lines_whole_ones_are_kept():
    candidate = made(("a = 1\nb = 2\n", 0.9), ("c =", 0.9), (" 3", 0.2))
    assert worthwhile_length(candidate, len(candidate.text), 0.3) == len("a = 1\nb = 2")


def test_a_part_ends_with_a_word_and_is_no_operator():
    candidate = made(("num", 0.9), ("bers", 0.5), (" + ", 0.9), ("x", 0.1))
    assert worthwhile_length(candidate, len(candidate.text), 0.3) == len("numbers")
    assert worthwhile_length(candidate, len(candidate.text), 0.6) == 0


@given(
    tokens=st.lists(
        st.tuples(st.text("ab (\n.", min_size=1, max_size=3), st.floats(0, 1)), min_size=1
    ),
    least=st.floats(0, 1),
)
def test_what_is_kept_is_never_less_sure_than_asked(tokens, least):
    candidate = made(*tokens)
    length = worthwhile_length(candidate, len(candidate.text), least)
    assert 0 <= length <= len(candidate.text)
    if length:
        (_, first), *others = line_confidences(candidate, length)
        assert first >= least
        assert all(confidence >= least_of_further_lines(least) for _, confidence in others)


def test_a_line_is_as_sure_as_its_own_tokens():
    candidate = made(
        ("if a", 0.5), (":\n", 0.5), ("    b", 0.5), ("\n\n    ", 0.25), ("c", 1.0), end=0.5
    )
    assert line_confidences(candidate, len(candidate.text)) == [
        (len("if a:"), 0.25),
        (len("if a:\n    b"), 0.5),
        (len(candidate.text), 0.125),
    ]
    assert line_confidences(candidate, len("if a:\n    b")) == [
        (len("if a:"), 0.25),
        (len("if a:\n    b"), 0.5),
    ]


def test_the_length_of_a_text_is_not_held_against_its_lines():
    candidate = made(*[(f"line_{i}()\n", 0.8) for i in range(9)], ("last", 0.6))
    assert is_sure(candidate, len(candidate.text), 0.3)
    assert confidence_of(candidate, len(candidate.text)) < 0.1
    assert worthwhile_length(candidate, len(candidate.text), 0.3) == len(candidate.text)


def test_a_line_below_the_first_has_to_be_right_more_often_than_not():
    candidate = made(("one()\n", 0.4), ("two()\n", 0.6), ("three()", 0.4))
    assert worthwhile_length(candidate, len(candidate.text), 0.3) == len("one()\ntwo()")
    assert not is_sure(candidate, len(candidate.text), 0.3)
    assert is_sure(candidate, len(candidate.text), 0.0)


def test_what_is_not_told_is_null_in_json():
    assert (told(math.nan), told(0.0), told(0.25)) == (None, 0.0, 0.25)
    assert math.isnan(confidence_of(Candidate(texts=("abc",), confidence=math.nan), 1))


@pytest.mark.timeout(60)  # a watchdog: what grows with the cube of the text takes far longer
@pytest.mark.parametrize("text", ["a" + "-" * 3000 + "y" * 3000, " " * 6000 + "\nx", "\n" * 6000])
def test_a_text_of_thousands_of_characters_is_weighed_at_once(text):
    candidate = made(*((character, 0.99999) for character in text))
    assert all(length <= len(text) for length in worthwhile_lengths(candidate, len(text), 0.1))
    assert line_confidences(candidate, len(text))[-1][0] in (len(text), text.rfind("x") + 1)
