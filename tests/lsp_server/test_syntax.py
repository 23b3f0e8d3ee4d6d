from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tree_sitter import Parser

from lsp_server.check.syntax import CHECKED_CHARS, SyntaxChecker
from lsp_server.document.context import DocumentError, InfillContext
from model.grammars import GRAMMARS

GOOD_AND_BAD = [
    # language id, document with the hole as ‸, a candidate that fits, one that does not
    ("python", "def f(a):\n    return ‸\n\nprint(f(1))\n", "max(a, [1])", "max(a, [1)"),
    ("javascript", "const f = (a) => {\n  return ‸;\n};\n", "g(a)[0]", "g(a)[0"),
    ("javascriptreact", "const e = () => (‸);\n", "<b>{x}</b>", "<b>{x</b>"),
    ("typescript", "function f(a: number): string {\n  return ‸;\n}\n", "<string>g(a)", "g(a"),
    ("typescriptreact", "const e = (n: number) => (‸);\n", "<b>{n}</b>", "<b>{n</b>"),
    ("go", "package p\n\nfunc f(a int) int {\n\t‸\n}\n", "return a + g(1)", "return a + g(1"),
    ("rust", "fn f(a: i32) -> i32 {\n    ‸\n}\n", "a.max(b[0])", "a.max(b[0)"),
    ("java", "class C {\n  int f(int a) {\n    ‸\n  }\n}\n", "return g(a);", "return g(a;"),
    ("c", "int f(int a) {\n  ‸\n}\n", "return a[0] + (int)1;", "return a[0 + (int)1;"),
    ("cpp", "int f(int a) {\n  ‸\n}\n", "return std::max<int>(a, 1);", "return std::max(a, 1;"),
    ("csharp", "class C {\n  int F(int a) {\n    ‸\n  }\n}\n", "return G(a);", "return G(a;"),
    ("ruby", "def f(a)\n  ‸\nend\n", "a.map { |x| x + 1 }", "a.map { |x| x + 1"),
    ("php", "<?php\nfunction f($a) {\n  ‸\n}\n", "return g($a);", "return g($a;"),
    ("shellscript", "f() {\n  ‸\n}\n", 'if [ -n "$1" ]; then echo y; fi', 'if [ -n "$1" ]; then ('),
    ("html", "<html><body>‸</body></html>\n", '<p class="a">hi</p>', "<p class='a"),
    ("css", "a { ‸ }\nb { top: 0 }\n", "color: rgb(1, 2, 3);", "color: rgb(1, 2;"),
    ("json", '{"a": ‸, "b": 1}\n', "[1, {}]", "[1, {]"),
    ("jsonc", '{\n  // note\n  "a": ‸\n}\n', "[1, {}]", "[1, {]"),
    ("sh", "f() {\n  ‸\n}\n", "echo hi", 'echo "hi'),
    ("bash", "f() {\n  ‸\n}\n", "echo hi", 'echo "hi'),
    ("cs", "class C {\n  int F(int a) {\n    ‸\n  }\n}\n", "return G(a);", "return G(a;"),
]


def new_errors(language: str, document: str, candidate: str) -> int | None:
    before, after = document.split("‸")
    start = len(before)
    return SyntaxChecker().new_errors(before + after, start, start, candidate, language=language)


def test_every_grammar_has_a_good_and_a_bad_candidate_below():
    assert {language for language, *_ in GOOD_AND_BAD} == GRAMMARS.keys()


@pytest.mark.parametrize(("language", "document", "good", "bad"), GOOD_AND_BAD)
def test_a_fitting_candidate_adds_no_error_and_an_unbalanced_one_does(
    language: str, document: str, good: str, bad: str
):
    assert new_errors(language, document, good) == 0
    assert (new_errors(language, document, bad) or 0) > 0


def test_an_unknown_language_goes_unchecked():
    assert new_errors("cobol", "ADD ‸", "((((") is None


def test_a_candidate_that_is_as_broken_as_the_empty_hole_is_to_blame():
    # `x = ` and `x = f(` both hold one error, but `x = name` would hold none.
    assert new_errors("python", "x = ‸\ny = 2\n", "f(") == 1


def test_a_candidate_that_mends_the_document_is_not_to_blame():
    assert new_errors("python", "print(len(‸\n", "x))") == 0


@pytest.mark.parametrize("candidate", ["b();", "return 1;", "\n  b();\n  c();"])
def test_a_block_still_being_written_need_not_be_closed(candidate: str):
    assert new_errors("javascript", "function f(a) {\n  ‸", candidate) == 0
    assert new_errors("javascript", "function f(a) {\n  if (a) {\n    ‸\n\n", candidate) == 0


def test_a_block_that_the_candidate_breaks_off_in_between_lines_need_not_be_closed_yet():
    for document in ("function f(a) {\n  ‸\n}\n", "function f(a) {\n  ‸"):
        assert new_errors("javascript", document, "if (a) {\n    b();") == 0
        assert new_errors("javascript", document, "if (a) {") == 0
        assert (new_errors("javascript", document, "if (a) {\n    b(;") or 0) > 0
        assert (new_errors("javascript", document, "if (a {\n    b();") or 0) > 0


def test_a_list_may_break_off_between_its_lines_and_not_at_its_bracket():
    assert new_errors("python", "x = ‸\ny = 2\n", "f(\n    1,") == 0
    assert (new_errors("python", "x = ‸\ny = 2\n", "f(1,\n    2") or 0) > 0
    assert (new_errors("python", "x = ‸\ny = 2\n", "f(") or 0) > 0


@pytest.mark.parametrize(
    ("language", "document", "good", "bad"),
    [
        ("python", "def f(\n    a: int, b‸\n\n\ndef g():\n    pass\n", ": int, c", ": int, c]"),
        ("python", "def f(\n    a: int, b‸\n\n\ndef g():\n    pass\n", ": int\n):", ": int\n)):"),
        (
            "python",
            'def f():\n    """Tell‸\n\n\ndef g():\n    pass\n',
            " it's so.",
            '."""\n    x =',
        ),
        ("typescript", "/**\n * Where‸\n\nexport const a = 1;\n", " it's (so).", " */ const ="),
        ("typescript", "f(a, {\n  b: g(‸\n\nexport const c = 1;\n", "1),", "1),}}"),
    ],
)
def test_what_the_prefix_has_begun_may_end_later(language: str, document: str, good: str, bad: str):
    assert new_errors(language, document, good) == 0
    assert (new_errors(language, document, bad) or 0) > 0


def test_an_error_elsewhere_is_not_held_against_the_candidate():
    broken = "const a = [1, 2;\n\nfunction f(a) {\n  return ‸;\n}\n"
    assert new_errors("javascript", broken, "g(a)") == 0
    assert (new_errors("javascript", broken, "g(a]") or 0) > 0


def test_an_error_inside_the_candidate_counts_though_the_sum_stays():
    # While the hole is empty, and with a name in it, the document has the error of `[1, 2;`.
    # This candidate closes that bracket, and brings an error of its own.
    broken = "const a = [1, 2‸;\n"
    assert new_errors("javascript", broken, "]") == 0
    assert (new_errors("javascript", broken, "]; f() }") or 0) > 0


WHERE_NO_NAME_STANDS = [
    # language id, document with the hole as ‸, candidates that fit, candidates that do not
    (
        "json",
        '{\n  "a": ‸\n}\n',
        ["[1]", "{}", '"abc"', "true", "-1.5e3"],
        ["[1", "tru", '"abc', "x", '"a" "b"', "1,"],
    ),
    ("json", '{\n  "a": ‸\n  "b": 2\n}\n', ["[1],", '"abc",'], ["[1]", "[1,", '"abc,']),
    (
        "json",
        '{\n  "a": "1",\n  ‸\n}\n',
        ['"b": 2', '"b": {\n    "c": []\n  }'],
        ['"b"', '"b": ', '"b: 2', '"b": 2,', "b: 2", '"b": "2'],
    ),
    ("json", '{\n  "a": ["b", ‸]\n}\n', ['"c"', "1, {}"], ['"c', '"c",', "c"]),
    ("jsonc", '{\n  // a\n  "a‸\n}\n', ['": 1', ' b": [1]', " b"], ['": [1', '": ', '": "c']),
    (
        "javascript",
        "import React from ‸\nconst y = 1;\n",
        ["'react';", '"react"'],
        ["'react", 'react"', "react", "'react')"],
    ),
    (
        "javascript",
        "import ‸\nconst y = 1;\n",
        ["'react';", "a from 'a'", "{ a } from 'a'"],
        ["'react", "{ a from 'a'", "a from a"],
    ),
    (
        "javascript",
        "import a from '‸\nconst y = 1;\n",
        ["a';", "a"],
        ["a')", "a' b", "a';'"],
    ),
    ("javascript", "export * from ‸;\n", ["'a'"], ["'a", "a"]),
    ("typescript", "import type { A } from ‸\n\nconst y = 1;\n", ["'a'"], ["'a", "a"]),
    (
        "typescriptreact",
        "const a = (\n  <div>\n    <b>c‸\n  </div>\n);\n",
        ["</b>", "<i></i></b>"],
        ["</i>", "<i></b></i>"],
    ),
    (
        "javascriptreact",
        "const a = (\n  <div>\n    ‸\n  </div>\n);\n",
        ["<b>c</b>", "<A.B />", "<>c</>"],
        ["<b>c</i>", "<A.B>c</A.C>"],
    ),
    ("typescriptreact", "const a = ‸\nconst y = 1;\n", ["<b>{1}</b>;"], ["<b>{1}</i>;", "<b>"]),
    ("javascript", "function f‸\n  return 1;\n}\n", ["(a) {", "() {"], ["(a {", "(a)) {"]),
    ("javascript", "class A extends B‸\n  f() {}\n}\n", ["C {", ".C {"], ["( {", "[ {"]),
    (
        "javascript",
        "if (a‸\n  b();\n}\n",
        [" === 1) {", ") {"],
        [" === 1)) {", " === (1) {", " ==) {"],
    ),
    (
        "go",
        "package a\n\nimport ‸\n\nfunc f() {}\n",
        ['"fmt"', '(\n\t"fmt"\n)'],
        ['"fmt', "fmt", '("fmt"'],
    ),
    ("go", 'package a\n\nimport (\n\t"a"\n\t‸\n)\n', ['"fmt"', 'b "b"'], ['"fmt', "fmt", '"fmt")']),
    (
        "go",
        "package a\n\nfunc f‸\n\treturn 1\n}\n",
        ["(a int) int {"],
        ["(a int int {", "(a int) int {)"],
    ),
    (
        "go",
        "package a\n\nfunc f() {\n\tfor ‸\n\t\tg()\n\t}\n}\n",
        ["i := range a {"],
        ["i := range a[ {", "(i {"],
    ),
    (
        "python",
        "def f‸\n    return 1\n",
        ["():", "(a: int) -> int:"],
        ["(a:", "(a]:", "(:", "(a)):"],
    ),
    ("python", "class A‸\n    x = 1\n", [":", "(B):"], ["(B:", "[B):"]),
    (
        "python",
        "for a‸\n    b()\n",
        [" in c:", " in range(3):"],
        [" in range(3:", " in :", " in c]:"],
    ),
    ("python", "while ‸\n    b()\n", ["a:"], ["a(:", "a):"]),
    ("python", "with open(‸\n    b()\n", ["a) as c:"], ["a as c:", "a)) as c:"]),
    ("python", "import a\nfrom ‸\n\nx = 1\n", ["b import c"], ["b import (c", "b import"]),
    ("php", "<?php\nfunction f‸\n{\n    return 1;\n}\n", ["()", "($a): int"], ["($a", "($a))"]),
    (
        "php",
        "<?php\nclass A‸\n{\n    public $b;\n}\n",
        [" extends B", " implements B, C"],
        [" extends B(", ' extends "B"'],
    ),
    ("php", "<?php\nif (‸\n    f();\n}\n", ["$a) {"], ["$a {", "$a[) {"]),
    ("php", "<?php\nuse ‸\n\nclass A {}\n", ["B\\C;"], ["B\\C);", '"B";']),
    ("php", "<?php\nnamespace ‸\n\nclass A {}\n", ["B\\C;"], ["B\\C);", '"B";']),
    (
        "html",
        "<div>\n  <p>a‸\n</div>\n",
        ["</p>", "<b>c</b></p>", "<br></p>"],
        ["</b>", "<b>c</i></p>", "</p></b>"],
    ),
    ("html", "<div>\n  <p a‸\n</div>\n", ['="b">c</p>', ">c</p>"], ['="b>c</p>', ">c</b>"]),
    (
        "html",
        "<ul>\n  ‸\n</ul>\n",
        ["<li>a</li>", "<li>a", '<li><img src="a"></li>'],
        ["<li>a</p>", "<li a", "</ul>"],
    ),
    ("css", "a {\n  color‸\n}\n", [": red;"], [": red);", ": rgb(1;"]),
    ("css", "@media ‸\n  a { top: 0 }\n}\n", ["(a: b) {"], ["(a: b {"]),
    ("c", "#include ‸\n\nint a;\n", ["<stdio.h>", '"a.h"'], ['"a.h', "<stdio.h"]),
    ("c", "int f‸\n  return 1;\n}\n", ["(void) {", "(int a) {"], ["(void {", "(int a)) {"]),
    ("cpp", "class A‸\n  int b;\n};\n", [" {", " : public B {"], [" : public B( {"]),
    (
        "java",
        "class A {\n  void f‸\n    g();\n  }\n}\n",
        ["() {", "(int a) throws B {"],
        ["( {", "(int a)) {"],
    ),
    ("java", "import ‸\n\nclass A {}\n", ["a.b.C;", "static a.B.*;"], ["a.b.C);", '"a";']),
    (
        "java",
        "class A {\n  private ‸\n\n  void f() {}\n}\n",
        ["int a = 1;", "final B b;"],
        ["int a = (1;", "int a = );"],
    ),
    (
        "csharp",
        "class A {\n  void F‸\n    G();\n  }\n}\n",
        ["() {", "(int a) {"],
        ["( {", "(int a)) {"],
    ),
    ("csharp", "using ‸\n\nclass A {}\n", ["B.C;"], ["B.C);"]),
    ("rust", "fn f‸\n    g();\n}\n", ["() {", "(a: i32) -> B {"], ["( {", "(a: i32)) {"]),
    ("rust", "use ‸\n\nfn f() {}\n", ["a::b;", "a::{b, c};"], ["a::{b;", "a::b);"]),
    ("ruby", "def f‸\n  1\nend\n", ["(a)", "", " a"], ["(a", "(a))"]),
    ("ruby", "class ‸\n  def f\n  end\nend\n", ["A", "A < B"], ["A(", "A < B)"]),
    ("ruby", "require ‸\n\ndef f\nend\n", ["'a'"], ["'a", "('a'"]),
    (
        "shellscript",
        "if ‸\n  a\nfi\n",
        ['[ -n "$1" ]; then'],
        ['[ -n "$1 ]; then', '[ -n "$(a" ]; then'],
    ),
    ("shellscript", "for a in ‸\n  b\ndone\n", ['"$@"; do', "1 2; do"], ['"$@; do', "$(a; do"]),
]


@pytest.mark.parametrize(
    ("language", "document", "good", "bad"),
    WHERE_NO_NAME_STANDS,
    ids=[f"{language} {document!r}" for language, document, *_ in WHERE_NO_NAME_STANDS],
)
def test_no_error_is_free_where_neither_nothing_nor_a_name_parses(
    language: str, document: str, good: list[str], bad: list[str]
):
    assert {text: new_errors(language, document, text) for text in good} == dict.fromkeys(good, 0)
    assert [text for text in bad if not new_errors(language, document, text)] == []


def test_what_is_wrong_elsewhere_in_the_document_is_still_nobodys_fault():
    for elsewhere in ('  "z": [1,\n', '  "z" 1,\n'):
        document = f'{{\n{elsewhere}  "a": ‸\n}}\n'
        assert new_errors("json", document, '"b"') == 0
    document = "</b>\n<div>\n  ‸\n</div>\n"
    assert new_errors("html", document, "<p>a</p>") == 0
    assert (new_errors("html", document, "<p>a</i>") or 0) > 0


def test_what_a_text_need_not_end_yet_may_be_ended_by_what_goes_on_there():
    assert new_errors("java", "class A {\n  int a = ‸\n  int b;\n}\n", "f(1)") == 0
    assert (new_errors("java", "class A {\n  int a = ‸\n  int b;\n}\n", "f(1") or 0) > 0
    assert new_errors("python", "if ‸\n    b()\n", "a") == 0
    assert (new_errors("python", "if ‸\n    b()\n", "f(a") or 0) > 0


def test_replacing_a_span_leaves_its_old_text_out_of_the_count():
    text = "x = (1 + )\n"
    start, end = text.index("("), text.index("\n")
    checker = SyntaxChecker()
    assert checker.new_errors(text, start, end, "(1 + 2)", language="python") == 0
    assert checker.new_errors(text, start, end, "(1 + 2", language="python") == 1


@pytest.mark.parametrize("eol", ["\n", "\r\n", "\r"])
def test_multibyte_text_around_and_inside_the_hole(eol: str):
    document = '# 😀 é\ns = "日本語" + ‸  # naïve\nt = "👩‍👩‍👧"\n'.replace("\n", eol)
    assert new_errors("python", document, 'f("ß😀",\n    "é")') == 0
    assert (new_errors("python", document, 'f("ß😀",\n    "é"') or 0) > 0


def test_half_a_surrogate_pair_does_not_stop_the_check():
    assert new_errors("python", "s = '\ud83d'\nt = ‸\n", "(1)") == 0
    assert new_errors("python", "s = ''\nt = ‸\n", "'\ud83d'") == 0


def test_a_span_outside_the_document_is_refused():
    with pytest.raises(DocumentError):
        SyntaxChecker().new_errors("x", 2, 2, "y", language="python")


def test_php_is_told_from_html_when_its_opening_tag_is_far_above():
    above = "<?php\n" + "$a = f(1);\n" * (3 * CHECKED_CHARS // 11)
    assert new_errors("php", above + "$b = ‸;\n", "g(2)") == 0
    assert (new_errors("php", above + "$b = ‸;\n", "g(2]") or 0) > 0


def test_several_holes_are_judged_together():
    context = InfillContext(
        prefix="é = ", between=("\n\ny = ",), suffix="\nz = 1\n", language="python"
    )
    checker = SyntaxChecker()
    assert checker.new_errors_in(context, ("(1,\n 2)", "[3]")) == 0
    assert (checker.new_errors_in(context, ("(1,\n 2)", "[3)")) or 0) > 0
    with pytest.raises(ValueError, match="1 texts for 2 holes"):
        checker.new_errors_in(context, ("1)",))


class CountingParser:
    """Counts a real parser's full parses and partial ones."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self.full = 0

    def parse(self, source: bytes, old_tree: object = None) -> object:
        if old_tree is None:
            self.full += 1
            return self._parser.parse(source)
        return self._parser.parse(source, old_tree)  # type: ignore[arg-type]


def judge(checker: SyntaxChecker, context: InfillContext, texts: Sequence[str]) -> list[int | None]:
    return [checker.new_errors_in(context, (text,)) for text in texts]


def test_a_context_is_parsed_in_full_once_for_all_its_candidates(monkeypatch: pytest.MonkeyPatch):
    parsers: list[CountingParser] = []

    def counting(*args: object) -> CountingParser:
        parsers.append(CountingParser(Parser(*args)))  # type: ignore[arg-type]
        return parsers[-1]

    monkeypatch.setattr("lsp_server.check.syntax.Parser", counting)
    checker = SyntaxChecker()
    context = InfillContext(prefix="x = ", suffix="\n", language="python")
    assert judge(checker, context, ["1", "(", "f(1)"]) == [0, 1, 0]
    assert judge(checker, replace(context, prefix="y = "), ["[", "2"]) == [1, 0]
    (parser,) = parsers
    assert parser.full == 2


@pytest.mark.parametrize(("language", "document", "good", "bad"), GOOD_AND_BAD)
def test_the_verdict_does_not_depend_on_what_was_judged_before(
    language: str, document: str, good: str, bad: str
):
    before, after = document.split("‸")
    context = InfillContext(prefix=before, suffix=after, language=language)
    texts = [bad, good, "", bad + good, good, bad]
    fresh = [SyntaxChecker().new_errors_in(context, (text,)) for text in texts]
    assert judge(SyntaxChecker(), context, texts) == fresh


def test_threads_may_share_a_checker():
    checker = SyntaxChecker()
    cases = [(case[0], *case[1].split("‸"), case[2]) for case in GOOD_AND_BAD] * 5

    def check(case: tuple[str, str, str, str]) -> int | None:
        language, before, after, good = case
        return checker.new_errors(before + after, len(before), len(before), good, language=language)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(check, cases)) == [0] * len(cases)
