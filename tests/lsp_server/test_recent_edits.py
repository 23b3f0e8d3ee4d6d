"""Where the last edits were, after further ones."""

from __future__ import annotations

from lsp_server.document.recent_edits import RING_SIZE, RecentEdits


def test_typing_on_in_one_place_is_one_edit():
    edits = RecentEdits()
    for _ in range(5):
        edits.note("a", 10, 10, 0)
    edits.note("a", 10, 10, 1)
    assert edits.lines_of("a") == (11,)


def test_places_far_apart_are_remembered_in_order():
    edits = RecentEdits()
    edits.note("a", 100, 100, 0)
    edits.note("b", 5, 5, 0)
    edits.note("a", 10, 10, 0)
    assert edits.lines_of("a") == (100, 10)
    assert edits.lines_of("b") == (5,)


def test_a_place_moves_with_what_is_written_and_erased_above_it():
    edits = RecentEdits()
    edits.note("a", 100, 100, 0)
    edits.note("a", 10, 10, 3)
    assert edits.lines_of("a") == (103, 13)
    edits.note("a", 20, 40, 0)
    assert edits.lines_of("a") == (83, 20)


def test_a_place_inside_of_what_is_erased_moves_to_its_start():
    edits = RecentEdits()
    edits.note("a", 50, 50, 0)
    edits.note("a", 20, 80, 0)
    assert edits.lines_of("a") == (20,)


def test_the_oldest_place_makes_room():
    edits = RecentEdits()
    for line in range(0, 100 * (RING_SIZE + 1), 100):
        edits.note("a", line, line, 0)
    assert len(edits.lines_of("a")) == RING_SIZE
    assert edits.lines_of("a")[0] == 100


def test_a_closed_document_is_forgotten():
    edits = RecentEdits()
    edits.note("a", 1, 1, 0)
    edits.note("b", 1, 1, 0)
    edits.forget("a")
    assert edits.lines_of("a") == ()
    assert edits.lines_of("b") == (1,)
