from __future__ import annotations

import pytest

from model.engine.counted_text import MAX_OCCURRENCES, CountedText
from model.tokenizer import CodeTokenizer


def counted(tokenizer: CodeTokenizer, text: str, *, precedes_hole: bool = True) -> CountedText:
    return CountedText(tokenizer.encode(text), tokenizer.token_bytes, precedes_hole=precedes_hole)


@pytest.mark.parametrize("precedes_hole", [True, False])
def test_occurrences_come_nearest_first(tokenizer: CodeTokenizer, precedes_hole: bool) -> None:
    text = "item, item, item"
    found = list(counted(tokenizer, text, precedes_hole=precedes_hole).occurrences(b","))
    assert found == [11, 5] if precedes_hole else [5, 11]


def test_a_context_begins_with_a_token(tokenizer: CodeTokenizer) -> None:
    # `self` is a token, so that its end, `f`, is none.
    assert tokenizer.encode("self") == tokenizer.encode("self.items")[:1]
    assert list(counted(tokenizer, "self.items").occurrences(b"f")) == []


def test_what_begins_at_an_offset_is_a_token_or_the_rest_of_one(tokenizer: CodeTokenizer) -> None:
    text = counted(tokenizer, "self.items")
    (dot,) = tokenizer.encode(".")
    assert text.token_at(4) == (dot, b"")
    assert text.token_at(2) == (None, b"lf")
    assert text.token_at(len("self.items")) == (None, b"")


def test_letters_of_several_bytes_are_found(tokenizer: CodeTokenizer) -> None:
    text = counted(tokenizer, 'x = "größe"')
    assert list(text.occurrences("ß".encode())) == [len('x = "größ'.encode())]


def test_of_many_occurrences_the_nearest_are_looked_at(tokenizer: CodeTokenizer) -> None:
    commas = counted(tokenizer, "item," * (MAX_OCCURRENCES + 10))
    ends = list(commas.occurrences(b","))
    assert len(ends) == MAX_OCCURRENCES
    assert ends[0] == 5 * (MAX_OCCURRENCES + 10)


def test_a_text_without_tokens_has_nothing(tokenizer: CodeTokenizer) -> None:
    empty = counted(tokenizer, "")
    assert list(empty.occurrences(b",")) == []
    assert empty.token_at(0) == (None, b"")
