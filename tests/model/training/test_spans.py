from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.training.spans import (
    _QUERIES,
    CHARS_PER_SPAN,
    MAX_SPAN_CHARS,
    is_sound,
    syntax_spans,
)

PYTHON = """\
def greet(name, *, loud=False):
    text = "Hello, é" + name
    if loud and name:
        print(text.upper(), end="")
        return text.upper()
    return text
"""


def found(text: str, language: str) -> set[tuple[str, str]]:
    """(kind, text) of every span, with room for all of them."""
    padding = "\n" * (200 * CHARS_PER_SPAN)
    return {(s.kind, text[s.start : s.end]) for s in syntax_spans(text + padding, language)}


@pytest.mark.parametrize(
    "span",
    [
        ("parameters", "name, *, loud=False"),
        ("value", '"Hello, é" + name'),
        ("string", "Hello, é"),
        ("condition", "loud and name"),
        ("arguments", 'text.upper(), end=""'),
        ("return", "text.upper()"),
        ("block", 'print(text.upper(), end="")\n        return text.upper()'),
        ("statement", 'text = "Hello, é" + name'),
        ("statement", "return text"),
        ("statements", PYTHON[PYTHON.index("if loud") :].rstrip()),
    ],
)
def test_python_has_spans_of_each_kind_without_their_brackets(span: tuple[str, str]) -> None:
    assert span in found(PYTHON, "python")


@pytest.mark.parametrize(
    ("language", "text", "spans"),
    [
        ("javascript", "if (a) { f(b, c); }", {("condition", "a"), ("block", "f(b, c);"),
                                               ("arguments", "b, c")}),
        ("typescript", "function f(a: number) { return g([a, 1]); }",
         {("parameters", "a: number"), ("value", "number"), ("elements", "a, 1")}),
        ("go", "func f(a int) {\n\tx := g(a)\n\treturn x\n}", {("parameters", "a int"),
                                                               ("value", "g(a)"),
                                                               ("statement", "return x")}),
        ("rust", "fn f(a: i32) -> i32 { let x = g(a, b); x }", {("parameters", "a: i32"),
                                                                ("value", "g(a, b)"),
                                                                ("arguments", "a, b")}),
        ("java", "class A { int f(int a) { return g(a, 1); } }", {("parameters", "int a"),
                                                                  ("return", "g(a, 1)")}),
        ("c", "int f(int a) { if (a) { a = 1; } return 2; }", {("parameters", "int a"),
                                                               ("condition", "a"),
                                                               ("value", "1")}),
        ("cpp", "int f() { vector<int> v = g({1, 2}); if (v.size()) return 0; }",
         {("condition", "v.size()"), ("elements", "1, 2"), ("arguments", "int")}),
    ],
)  # fmt: skip
def test_every_language_has_spans(language: str, text: str, spans: set[tuple[str, str]]) -> None:
    assert spans <= found(text, language)


def test_every_language_that_has_a_query_is_tested() -> None:
    (mark,) = test_every_language_has_spans.pytestmark  # type: ignore[attr-defined]
    tested = {case[0] for case in mark.args[1]}
    assert {"python", "typescriptreact", *tested} == set(_QUERIES)


def test_comments_begin_no_statement() -> None:
    assert not any("note" in text for _, text in found("// note\n\n/// note\nx();", "javascript"))


def test_a_language_without_a_query_has_no_spans() -> None:
    assert syntax_spans("<p>x</p>" * 99, "html") == []


@given(st.text("ab(){}[]:,=\"'\n #é🎉\u2028", max_size=80), st.sampled_from(sorted(_QUERIES)))
def test_spans_lie_in_any_text_bounded_and_sorted(noise: str, language: str) -> None:
    text = noise + PYTHON
    spans = syntax_spans(text, language)
    assert len(spans) <= len(text) // CHARS_PER_SPAN
    assert [(s.start, s.end) for s in spans] == sorted({(s.start, s.end) for s in spans})
    for span in spans:
        assert 0 <= span.start < span.end <= len(text)
        assert span.end - span.start <= MAX_SPAN_CHARS
        assert text[span.end - 1] not in " \n"


def test_a_limited_choice_is_the_same_each_time_and_has_all_kinds() -> None:
    text = PYTHON * 40
    spans = syntax_spans(text, "python")
    assert len(spans) == len(text) // CHARS_PER_SPAN
    assert spans == syntax_spans(text, "python")
    kinds = [s.kind for s in spans]
    assert min(kinds.count(kind) for kind in {kind for kind, _ in found(PYTHON, "python")}) > 5


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("print('x')", True),
        ("class A[T]: pass", True),
        ("match x:\n    case 1: pass", True),
        ("print 'x'", False),
        ("exec 'x'", False),
        ("def f(:", False),
    ],
)
def test_python_is_sound_if_it_parses_as_python_3(text: str, sound: bool) -> None:
    assert is_sound(text, "python") is sound


def test_other_languages_are_taken_as_they_are() -> None:
    assert is_sound("int f( {", "c")
