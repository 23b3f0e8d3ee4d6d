import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsp_server.document.context import (
    DocumentError,
    InfillContext,
    check_document,
    context_at,
    offset_at,
    read_document,
)

WHOLE = {"language": "python", "prefix_chars": 10_000, "suffix_chars": 10_000}

documents = st.text(st.sampled_from("ab \n\r\t😀é\f\u2028"), max_size=300)


def context_in(text: str, start: int, budget: int, end: int | None = None) -> InfillContext:
    return context_at(text, start, end, language="python", prefix_chars=budget, suffix_chars=budget)


def lines_of(num_lines: int) -> str:
    return "".join(f"value_{number} = {number}\n" for number in range(num_lines))


def test_a_small_document_is_taken_whole():
    context = context_at("a = 1\nb = \nc = 3\n", 9, **WHOLE)
    assert (context.prefix, context.suffix) == ("a = 1\nb =", " \nc = 3\n")
    assert context.starts_file
    assert context.ends_file
    assert context.between == ()
    assert context.language == "python"


def test_a_span_to_replace_is_in_neither_window():
    context = context_at("return old(x) + 1", 7, 13, **WHOLE)
    assert (context.prefix, context.suffix) == ("return ", " + 1")


def test_what_lies_beyond_the_windows_is_given_as_far_as_asked_for():
    text = lines_of(400)
    cursor = len(text) // 2
    context = context_at(
        text, cursor, language="python", prefix_chars=200, suffix_chars=200, far_chars=500
    )
    around = context.before + context.prefix + context.suffix + context.after
    assert around in text
    assert (len(context.before), len(context.after)) == (500, 500)
    near = context_in(text, cursor, 200)
    assert (near.before, near.after) == ("", "")
    assert (near.prefix, near.suffix) == (context.prefix, context.suffix)


def test_what_lies_beyond_the_windows_ends_with_the_document():
    text = "one\r\n" * 100
    context = context_at(
        text, 200, language="python", prefix_chars=40, suffix_chars=40, far_chars=10_000
    )
    whole = context.before + context.prefix + context.suffix + context.after
    assert whole == text.replace("\r\n", "\n")


@pytest.mark.parametrize("span", [(-1, 0), (0, 4), (2, 1), (4, 4)])
def test_a_span_outside_the_document_is_refused(span: tuple[int, int]):
    with pytest.raises(DocumentError, match=r"outside the document, which has 3 characters"):
        context_at("abc", *span, **WHOLE)


@pytest.mark.parametrize("eol", ["\n", "\r\n", "\r"])
def test_every_line_end_reads_as_newline_and_is_remembered(eol: str):
    text = f"one{eol}two{eol}three"
    context = context_at(text, text.index("two"), **WHOLE)
    assert (context.prefix, context.suffix) == ("one\n", "two\nthree")
    assert context.eol == eol


def test_half_a_surrogate_pair_becomes_encodable():
    context = context_at("a\ud83d|b", 2, **WHOLE)
    assert context.prefix.encode() == "a\ufffd".encode()


@settings(max_examples=300)
@given(documents, st.data())
def test_windows_hold_their_budget_and_at_most_twice_as_much(text: str, data: st.DataObject):
    budget = data.draw(st.integers(0, 60))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    # Line ends of one character only, so that lengths in the context are lengths in the text.
    text = text.replace("\r", "\n")
    context = context_in(text, start, budget, end)
    assert text[:start].endswith(context.prefix)
    assert text[end:].startswith(context.suffix)
    assert min(budget, start) <= len(context.prefix) <= 2 * budget
    assert min(budget, len(text) - end) <= len(context.suffix) <= 2 * budget
    assert context.starts_file == (len(context.prefix) == start)
    assert context.ends_file == (len(context.suffix) == len(text) - end)


@settings(max_examples=300)
@given(documents, st.data())
def test_windows_never_cut_a_crlf_in_two(text: str, data: st.DataObject):
    text = text.replace("\r", "").replace("\n", "\r\n")
    cursors = [n for n in range(len(text) + 1) if text[max(0, n - 1) : n + 1] != "\r\n"]
    cursor = data.draw(st.sampled_from(cursors))
    budget = data.draw(st.integers(0, 60))
    context = context_in(text, cursor, budget)
    assert text[:cursor].endswith(context.prefix.replace("\n", "\r\n"))
    assert text[cursor:].startswith(context.suffix.replace("\n", "\r\n"))
    longest = max(len(side.replace("\n", "\r\n")) for side in (context.prefix, context.suffix))
    assert longest <= 2 * budget


@settings(max_examples=30, deadline=None)
@given(
    head=st.integers(0, 400),
    tail=st.integers(0, 400),
    typed=st.text(st.sampled_from("xy \n"), min_size=600, max_size=900),
)
def test_typing_rarely_moves_the_far_edges(head: int, tail: int, typed: str):
    above, below = lines_of(head), lines_of(tail)
    budget = 800
    starts, suffixes = set[int](), set[str]()
    for length in range(len(typed) + 1):
        before = above + typed[:length]
        context = context_in(before + below, len(before), budget)
        starts.add(len(before) - len(context.prefix))
        suffixes.add(context.suffix)
    # A step is three quarters of the budget: 600 characters.
    assert len(starts) <= 1 + -(-len(typed) // 600)
    assert len(suffixes) == 1


def test_far_edges_stand_at_line_starts_where_lines_are_short():
    text = lines_of(2_000)
    context = context_in(text, len(text) // 2, 1_000)
    assert not context.starts_file
    assert not context.ends_file
    assert context.prefix.startswith("value_")
    assert context.suffix.endswith("\n")


def test_one_line_of_a_megabyte_is_bounded():
    text = "x" * 1_000_000
    context = context_in(text, 500_000, 3_000)
    assert 3_000 <= len(context.prefix) <= 6_000
    assert 3_000 <= len(context.suffix) <= 6_000


@given(documents)
def test_every_offset_has_a_line_and_column_that_lead_back_to_it(text: str):
    for offset in range(len(text) + 1):
        if text[max(0, offset - 1) : offset + 1] == "\r\n":
            continue
        lines = re.split(r"\r\n|\n|\r", text[:offset])
        assert offset_at(text, len(lines), len(lines[-1]) + 1) == offset


def test_columns_count_characters_and_may_stand_past_the_last():
    assert offset_at("a\n😀é\tz\n", 2, 3) == 4
    assert offset_at("a\n😀é\tz\n", 2, 5) == 6
    assert offset_at("a\n", 2, 1) == 2
    assert offset_at("", 1, 1) == 0


def test_form_feeds_and_line_separators_end_no_line():
    text = "a\f\u2028\x85b"
    assert offset_at(text, 1, 6) == 5
    with pytest.raises(DocumentError, match=r"line 2 is outside the document, which has 1 line$"):
        offset_at(text, 2, 1)


@pytest.mark.parametrize(
    ("line", "column", "sentence"),
    [
        (0, 1, "line 0 is outside the document, which has 3 lines"),
        (4, 1, "line 4 is outside the document, which has 3 lines"),
        (2, 5, "column 5 is outside line 2, which has 3 characters: use 1 to 4"),
        (1, 0, "column 0 is outside line 1, which has 1 character: use 1 to 2"),
    ],
)
def test_a_cursor_outside_the_document_is_told_its_real_size(line: int, column: int, sentence: str):
    with pytest.raises(DocumentError) as refused:
        offset_at("a\r\nbcd\r\n", line, column)
    assert str(refused.value) == sentence


def test_a_file_is_read_with_its_line_ends_and_without_its_mark(tmp_path: Path):
    path = tmp_path / "main.py"
    path.write_bytes(b"\xef\xbb\xbfa = '\xc3\xa9'\r\nb\r")
    assert read_document(path, 1024) == "a = 'é'\r\nb\r"


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path):
    path = tmp_path / "main.py"
    path.write_bytes(b"x" * 2048)
    assert len(read_document(path, 2)) == 2048


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a\0b", "holds NUL bytes, so it is binary"),
        (b"caf\xe9\n", r"is not UTF-8 text \(byte 4\)"),
        (b"x" * 2049, "is larger than 2 kB; raise mezzotint.maxFileKB"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path: Path, content: bytes, sentence: str):
    path = tmp_path / "data.bin"
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=f"data.bin {sentence}"):
        read_document(path, 2)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(DocumentError, match=r"nothing\.py does not exist"):
        read_document(tmp_path / "nothing.py", 2)
    with pytest.raises(DocumentError, match="is not a regular file"):
        read_document(tmp_path, 2)


def test_an_open_document_is_held_to_the_same_limits():
    check_document("é" * 1024, name="main.py", max_kb=2)
    with pytest.raises(DocumentError, match=r"main\.py is larger than 2 kB"):
        check_document("é" * 1025, name="main.py", max_kb=2)
    with pytest.raises(DocumentError, match=r"main\.py holds NUL bytes"):
        check_document("a\0", name="main.py", max_kb=2)
