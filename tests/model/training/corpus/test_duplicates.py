from __future__ import annotations

from collections.abc import Callable

from model.training.corpus.duplicates import DuplicateFinder, content_digest

SourceCode = Callable[[int], str]


def test_white_space_makes_no_other_file(source_code: SourceCode) -> None:
    finder = DuplicateFinder()
    assert finder.seen(source_code(0)) is None
    assert finder.seen(source_code(0).replace("\n\n", "\n\n\n")) == "duplicate"


def test_a_changed_line_makes_no_other_file(source_code: SourceCode) -> None:
    finder = DuplicateFinder()
    file = "".join(map(source_code, range(4)))
    assert finder.seen(file) is None
    assert finder.seen("# Copyright 2026\n" + file.replace("raven", "storm")) == "near-duplicate"
    assert finder.seen(file + source_code(9)) == "near-duplicate"


def test_files_that_share_some_lines_are_different(source_code: SourceCode) -> None:
    finder = DuplicateFinder()
    assert finder.seen(source_code(0) + source_code(1)) is None
    assert finder.seen(source_code(0) + source_code(2)) is None
    assert finder.seen(source_code(3)) is None


def test_a_file_shorter_than_a_shingle_is_no_duplicate_of_another() -> None:
    finder = DuplicateFinder()
    assert [finder.seen(text) for text in ("one", "two", "", "one")] == [
        None, None, None, "duplicate",
    ]  # fmt: skip


def test_the_digest_is_that_of_the_words() -> None:
    assert content_digest("a  b\n") == content_digest("a\tb")
    assert content_digest("ab") != content_digest("a b")
