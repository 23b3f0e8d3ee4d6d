"""Which holes a file has, and which go together."""

from __future__ import annotations

import pytest

from lsp_server.document.holes import CANVAS_SLOTS, Hole, find_holes, grouped


@pytest.mark.parametrize(
    ("language", "text", "found"),
    [
        ("python", "x = <FILL> + <FILL>\n", ["<FILL>", "<FILL>"]),
        ("python", "def f():\n    ...\n", ["..."]),
        ("python", "def f(): ...\n", ["..."]),
        ("python", "def f():\n    ...", ["..."]),
        ("python", "def f():\r\n    ...\r\nx\r\n", ["..."]),
        ("python", "x[..., 0]\nf(...)\n", []),
        ("python", "def f():\n    pass  # hole\n", ["pass  # hole"]),
        ("python", "def f():\n    pass\n", []),
        ("javascript", "  ...\n", ["..."]),
        ("javascript", "f(): ...\n  ...rest,\n", []),
        ("go", "pass # hole\n", []),
    ],
)
def test_a_marker_is_a_hole_where_the_list_says_so(language, text, found):
    holes = find_holes(text, language)
    assert [text[hole.start : hole.end] for hole in holes] == found
    assert all(hole.lead == "" for hole in holes)


@pytest.mark.parametrize("comment", ["# TODO: sum", "// TODO sum", "/* TODO */", "-- TODO"])
def test_below_a_todo_a_line_of_its_indentation_is_a_hole(comment):
    text = f"f\n  {comment}\ng\n"
    (hole,) = find_holes(text, "python")
    assert (text[: hole.start], hole.end - hole.start) == (f"f\n  {comment}", 0)
    assert hole.lead == "\n  "


def test_a_todo_in_a_windows_file_leads_with_a_windows_line_end():
    (hole,) = find_holes("# TODO\r\nx\r\n", "python")
    assert hole.lead == "\r\n"
    assert hole.start == len("# TODO")


def test_a_todo_inside_a_line_or_a_longer_word_is_none():
    assert find_holes("x = 1  # TODO later\n# TODOS\n", "python") == []


def test_a_todo_over_a_marker_is_one_hole():
    text = "def f():\n    # TODO: add\n    ...\n"
    (hole,) = find_holes(text, "python")
    assert text[hole.start : hole.end] == "..."


@pytest.mark.parametrize(
    ("text", "marker", "marked"),
    [
        ("x = <FILL>\n", "<FILL>", "<FILL>"),
        ("def f(): ...\n", "...", "..."),
        ("def f():\n    pass # hole\n", "pass  # hole", "pass # hole"),
        ("  # TODO: sum\nx\n", "TODO", "# TODO: sum"),
    ],
)
def test_a_hole_knows_its_marker_and_where_that_stands(text, marker, marked):
    (hole,) = find_holes(text, "python")
    assert (hole.marker, text[hole.marked_from : hole.end]) == (marker, marked)


def hole(start, end):
    return Hole(start, end, marker="...", marked_from=start)


def test_holes_that_fit_one_canvas_go_together():
    holes = [hole(10 * i, 10 * i + 3) for i in range(5)]
    assert grouped(holes) == [holes]


def test_what_does_not_fit_goes_into_further_groups():
    holes = [hole(10 * i, 10 * i + 3) for i in range(20)]
    groups = grouped(holes)
    assert [one for group in groups for one in group] == holes
    assert len(groups) == 3
    assert all(16 * len(group) <= CANVAS_SLOTS for group in groups)


def test_holes_far_apart_are_filled_one_by_one():
    assert len(grouped([hole(0, 3), hole(5000, 5003)])) == 2


def test_no_holes_make_no_groups():
    assert grouped([]) == []
