from __future__ import annotations

import pytest

from model.evaluation.holes import CONTEXT_CHARS, cut_holes
from model.evaluation.sources import SourceText


@pytest.fixture
def sources(code: str) -> list[SourceText]:
    return [SourceText("a.py", "python", code), SourceText("b.py", "python", "x = 1\n\n   \ny")]


class TestCutting:
    def test_the_hole_and_its_surroundings_make_the_file(self, sources: list[SourceText]) -> None:
        for hole in cut_holes(sources, 200, 0):
            assert hole.prefix + hole.middle + hole.suffix == hole.source.text

    def test_none_is_blank_or_goes_on_in_the_next_line(self, sources: list[SourceText]) -> None:
        for hole in cut_holes(sources, 200, 1):
            assert hole.middle == hole.middle.rstrip()
            assert "\n" not in hole.middle
            assert not hole.suffix.strip(" ") or hole.suffix.lstrip(" ").startswith("\n")

    def test_whole_lines_begin_behind_their_indentation_and_rests_anywhere(
        self, sources: list[SourceText]
    ) -> None:
        holes = cut_holes(sources, 200, 2)
        whole = [hole for hole in holes if hole.kind == "whole line"]
        rests = [hole for hole in holes if hole.kind == "rest of line"]
        assert len(whole) == len(rests) == 100
        for hole in whole:
            assert hole.prefix.rpartition("\n")[2].strip() == ""
        assert any(h.prefix[-1:].isalpha() and h.middle[0].isalpha() for h in rests)  # in a word

    def test_each_file_has_its_share_and_a_seed_its_holes(self, sources: list[SourceText]) -> None:
        holes = cut_holes(sources, 400, 3)
        assert 150 < sum(hole.source.name == "b.py" for hole in holes) < 250
        assert cut_holes(sources, 400, 3) == holes
        assert cut_holes(sources, 400, 4) != holes

    def test_of_a_long_file_only_a_window_is_taken(self) -> None:
        text = "value = 1\n" * 5000
        (hole,) = cut_holes([SourceText("long.py", "python", text)], 1, 0)
        assert (len(hole.prefix), len(hole.suffix)) == (CONTEXT_CHARS, CONTEXT_CHARS)

    def test_files_of_overlong_lines_only_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no line of 1 to 160 characters"):
            cut_holes([SourceText("min.js", "javascript", "x" * 999)], 1, 0)
