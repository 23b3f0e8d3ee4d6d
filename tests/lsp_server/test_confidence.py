"""How sure the model is of a part of its text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsp_server.confidence import confidence_of, confident_length, told
from model.api import Candidate


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
    ("least", "kept"), [(0.8, "foo(a)"), (0.5, "foo(a).bar"), (0.95, ""), (0.1, "foo(a).bar()")]
)
def test_a_text_is_kept_up_to_where_the_product_falls_below(least, kept):
    candidate = made(("foo(a)", 0.9), (".bar", 0.6), ("()", 0.2))
    assert candidate.text[: confident_length(candidate, len(candidate.text), least)] == kept


@given(
    tokens=st.lists(
        st.tuples(st.text("ab (\n.", min_size=1, max_size=3), st.floats(0, 1)), min_size=1
    ),
    least=st.floats(0, 1),
)
def test_what_is_kept_is_never_less_sure_than_asked(tokens, least):
    candidate = made(*tokens)
    length = confident_length(candidate, len(candidate.text), least)
    assert 0 <= length <= len(candidate.text)
    if length:
        assert confidence_of(candidate, length) >= least


def test_what_is_not_told_is_null_in_json():
    assert (told(math.nan), told(0.0), told(0.25)) == (None, 0.0, 0.25)
    assert math.isnan(confidence_of(Candidate(texts=("abc",), confidence=math.nan), 1))
