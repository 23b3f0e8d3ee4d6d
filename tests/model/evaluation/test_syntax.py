from __future__ import annotations

import pytest

from model.evaluation.syntax import parses


@pytest.mark.parametrize(
    ("language", "right", "wrong"),
    [
        ("python", "x = '\\d'\n", "x = ("),
        ("python", "match x:\n    case 1: pass\n", "x = 1\n  y = 2\n"),
        ("python", "", "\0"),
        ("javascript", "let x = 1;", "let x = ;"),
        ("typescript", "let x: number = 1;", "let x: = 1;"),
        ("shellscript", "if true; then :; fi", "if true; then"),
    ],
)
def test_programs_parse_and_broken_ones_do_not(language: str, right: str, wrong: str) -> None:
    assert parses(right, language) is True
    assert parses(wrong, language) is False


def test_a_program_nested_too_deep_does_not_parse() -> None:
    assert parses("(" * 5000 + ")" * 5000, "python") is False


def test_of_a_language_without_a_parser_nothing_is_known() -> None:
    assert parses("?", "cobol") is None
