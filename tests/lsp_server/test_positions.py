"""Positions, in all three encodings, checked against `str.encode`."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lsprotocol import types
from pygls.workspace import PositionCodec

from lsp_server.ask.documents import LspDocument, locate

UNIT_BYTES = {"utf-8": ("utf-8", 1), "utf-16": ("utf-16-le", 2), "utf-32": ("utf-32-le", 4)}
ENCODINGS = sorted(UNIT_BYTES)

# Emoji (a surrogate pair), a family (joined by U+200D), e + combining acute, a tab, Greek, CJK,
# and the three characters that `str.splitlines` takes for line ends and LSP does not.
PIECES = ["a", "_9", "\t", "😀", "👩‍👩‍👧", "e\u0301", "λ", "語", "\x0c", "\u2028", "\x85", " "]
EOLS = ["\n", "\r\n", "\r"]
documents = st.lists(st.sampled_from(PIECES + EOLS), max_size=40).map("".join)


def units(text: str, encoding: str) -> int:
    codec, size = UNIT_BYTES[encoding]
    return len(text.encode(codec)) // size


def document(text: str, encoding: str) -> LspDocument:
    codec = PositionCodec(types.PositionEncodingKind(encoding))
    return LspDocument("file:///a.py", text, 1, "python", position_codec=codec)


def position_of(text: str, offset: int, encoding: str) -> types.Position:
    lines = re.split(r"\r\n|\r|\n", text[:offset])
    return types.Position(len(lines) - 1, units(lines[-1], encoding))


def splits_crlf(text: str, offset: int) -> bool:
    return text[offset - 1 : offset + 1] == "\r\n" if offset else False


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=documents, data=st.data())
def test_every_offset_survives_the_way_to_a_position_and_back(encoding, text, data):
    offset = data.draw(st.integers(0, len(text)).filter(lambda o: not splits_crlf(text, o)))
    position = position_of(text, offset, encoding)
    doc = document(text, encoding)
    place = locate(doc.lines, doc.position_codec, position)
    assert (place.offset, place.position) == (offset, position)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=documents, line=st.integers(0, 50), character=st.integers(0, 400))
def test_any_position_is_clamped_to_a_place_in_the_document(encoding, text, line, character):
    doc = document(text, encoding)
    place = locate(doc.lines, doc.position_codec, types.Position(line, character))
    assert 0 <= place.offset <= len(text)
    assert not splits_crlf(text, place.offset)
    assert place.position == position_of(text, place.offset, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=documents, new=documents, data=st.data())
def test_incremental_edits_change_what_the_client_changed(encoding, text, new, data):
    whole = st.integers(0, len(text)).filter(lambda o: not splits_crlf(text, o))
    start, end = sorted((data.draw(whole), data.draw(whole)))
    doc = document(text, encoding)
    doc.apply_change(
        types.TextDocumentContentChangePartial(
            types.Range(position_of(text, start, encoding), position_of(text, end, encoding)), new
        )
    )
    assert doc.source == text[:start] + new + text[end:]


positions = st.builds(types.Position, st.integers(0, 12), st.integers(0, 60))
edits = st.tuples(positions, positions, st.lists(st.sampled_from(PIECES + EOLS), max_size=4))


def clamped(text: str, position: types.Position, encoding: str) -> int:
    """The offset of a position, by the protocol's rules, character after character."""
    ends = [0, *(match.end() for match in re.finditer(r"\r\n|\r|\n", text))]
    if position.line >= len(ends):
        return len(text)
    offset = ends[position.line]
    while offset < len(text) and text[offset] not in "\r\n":
        if units(text[ends[position.line] : offset], encoding) >= position.character:
            break
        offset += 1
    return offset


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=documents, changes=st.lists(edits, min_size=1, max_size=4))
def test_edits_at_any_positions_leave_server_and_client_with_the_same_text(encoding, text, changes):
    doc = document(text, encoding)
    for first, last, pieces in changes:
        new = "".join(pieces)
        start, end = sorted(clamped(text, at, encoding) for at in (first, last))
        text = text[:start] + new + text[end:]
        change = types.TextDocumentContentChangePartial(types.Range(first, last), new)
        doc.apply_change(change)
        assert doc.source == text
        assert list(doc.lines) == list(document(text, encoding).lines)
    doc.apply_change(types.TextDocumentContentChangeWholeDocument("a\rb"))
    assert (doc.source, list(doc.lines)) == ("a\rb", ["a\r", "b"])


def test_the_lines_of_an_older_version_stay_as_they_were():
    doc = document("a\nb\n", "utf-16")
    lines = doc.lines
    start = types.Position(0, 0)
    doc.apply_change(types.TextDocumentContentChangePartial(types.Range(start, start), "c\n"))
    assert list(lines) == ["a\n", "b\n", ""]


@pytest.mark.timeout(60)  # a watchdog: what grows with the square of the line takes far longer
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("piece", "word"), [("6f", None), ("λ", None), ("😀_", "_"), ("\ud83d", "")]
)
def test_a_place_in_a_line_of_a_million_characters_is_found_at_once(encoding, piece, word):
    codec, size = UNIT_BYTES[encoding]
    line = piece * (1_000_000 // len(piece))
    end = types.Position(0, len(line.encode(codec, "surrogatepass")) // size)
    doc = document(line + "\n", encoding)
    place = locate(doc.lines, doc.position_codec, end)
    assert (place.offset, place.position) == (len(line), end)
    assert place.word == (line if word is None else word)
    doc.apply_change(types.TextDocumentContentChangePartial(types.Range(end, end), "!"))
    assert doc.source == line + "!\n"


@pytest.mark.timeout(60)
def test_a_thousand_edits_at_once_cost_no_more_than_the_document_is_long():
    doc = document("value = é(1)\n" * 50_000, "utf-16")
    for number in range(1_000):
        at = types.Position(number * 50, 5)
        doc.apply_change(types.TextDocumentContentChangePartial(types.Range(at, at), "s"))
    assert doc.source.count("values") == 1_000


@pytest.mark.parametrize(
    ("text", "line", "character", "offset"),
    [
        ("ab\r\ncd", 0, 99, 2),  # past the end of a CRLF line: before the CR
        ("ab\r\ncd", 0, 3, 2),  # pygls alone would land between CR and LF
        ("ab", 0, 99, 2),  # past the end of a last line without line end
        ("ab\n", 1, 0, 3),  # the empty last line
        ("ab\n", 7, 7, 3),  # past the last line
        ("", 0, 5, 0),
    ],
)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_positions_outside_the_text_are_clamped(encoding, text, line, character, offset):
    doc = document(text, encoding)
    place = locate(doc.lines, doc.position_codec, types.Position(line, character))
    assert place.offset == offset


def test_the_middle_of_a_surrogate_pair_means_the_end_of_the_character():
    doc = document("a😀b", "utf-16")
    place = locate(doc.lines, doc.position_codec, types.Position(0, 2))
    assert (place.offset, place.position) == (2, types.Position(0, 3))


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_session_splits_the_document_exactly_at_the_cursor(start_session, encoding):
    before, after = 'x\t= "😀e\u0301"\r\n\x0cλ = "👩‍👩‍👧', '"\r\ny = 1\r\n'
    session = await start_session("--text", "z", encoding=encoding)
    assert session.initialize_result.capabilities.position_encoding == encoding
    uri = session.open(before + after)
    position = position_of(before, len(before), encoding)
    (item,) = await session.inline(uri, position.line, position.character)
    assert item.range == types.Range(position, position)
    (request,) = session.journal("request")
    assert request["prefix"] == before.replace("\r\n", "\n")
    assert request["suffix"] == after.replace("\r\n", "\n")


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_session_follows_edits_below_a_form_feed_and_behind_emoji(start_session, encoding):
    session = await start_session("--text", "z", encoding=encoding)
    uri = session.open('\x0cs = "😀"\nt = 1\n')
    column = units('\x0cs = "😀', encoding)
    session.edit(uri, (0, column), (0, column), "λ\r\n")
    session.edit(uri, (2, 4), (2, 5), "22")
    await session.inline(uri, 2, 6)
    (request,) = session.journal("request")
    assert request["prefix"] == '\x0cs = "😀λ\n"\nt = 22'
    assert request["suffix"] == "\n"
