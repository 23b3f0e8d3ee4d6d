"""What documents declare and import, language by language."""

from __future__ import annotations

import pytest

from lsp_server.document.outline import MAX_LINES, outline_of


@pytest.mark.parametrize(
    ("language", "text", "declared"),
    [
        (
            "python",
            "class Cart:\n    @property\n    def total(self) -> int:\n        return 1\n",
            {"Cart": "class Cart:\n    def total(self) -> int:"},
        ),
        ("python", "@dataclass\nclass P:\n    x: int\n", {"P": "class P:\n    x: int"}),
        ("typescript", "export function add(a: number): number {\n  return a;\n}\n",
         {"add": "function add(a: number): number"}),
        ("typescript", "export interface Point {\n  x: number;\n}\n",
         {"Point": "interface Point {\n  x: number;\n}"}),
        ("javascript", "const twice = (x) => {\n  return 2 * x;\n};\n",
         {"twice": "const twice = (x) =>"}),
        ("go", "type Point struct {\n\tX int\n}\n\nfunc (p *Point) Move(by int) {\n}\n",
         {"Point": "type Point struct {\n\tX int\n}", "Move": "func (p *Point) Move(by int)"}),
        ("rust", "impl Point {\n    pub fn new() -> Self {\n        Self\n    }\n}\n",
         {"Point": "impl Point\n    pub fn new() -> Self"}),
        ("java", "class A {\n  int f(int x) { return x; }\n}\n",
         {"A": "class A\n  int f(int x)"}),
        ("c", "size_t length(const char *s) {\n  return 0;\n}\n",
         {"length": "size_t length(const char *s)"}),
    ],
)  # fmt: skip
def test_a_declaration_is_what_comes_before_its_body(
    language: str, text: str, declared: dict[str, str]
):
    outline = outline_of(text, language)
    assert {one.name: one.text for one in outline.declarations} == declared


@pytest.mark.parametrize(
    ("language", "text", "imported"),
    [
        ("python", "from .store import Cart as C\nimport os.path\n", {"store", "Cart", "os"}),
        ("typescript", 'import { Cart } from "./store";\n', {"Cart", "store"}),
        ("javascript", 'const store = require("./lib/store");\n', {"lib", "store"}),
        ("go", 'import (\n\t"example.com/shop/store"\n)\n', {"shop", "store"}),
        ("rust", "use crate::store::Cart;\n", {"store", "Cart"}),
        ("java", "import shop.store.Cart;\n", {"store", "Cart"}),
        ("c", '#include "store.h"\n', {"store"}),
        ("ruby", 'require_relative "store"\n', {"store"}),
    ],
)
def test_imports_are_known_by_their_words(language: str, text: str, imported: set[str]):
    assert imported <= outline_of(text, language).imported


def test_words_outside_of_imports_import_nothing():
    assert not outline_of("store = 1\nprint(store)\n", "python").imported


def test_a_long_class_shows_its_first_members():
    members = "".join(f"    def f{n}(self):\n        pass\n" for n in range(40))
    (declaration,) = outline_of(f"class C:\n{members}", "python").declarations
    lines = declaration.text.split("\n")
    assert len(lines) == MAX_LINES
    assert lines[1] == "    def f0(self):"


@pytest.mark.parametrize("text", ["", "def (:\n", "class\n", "\ud83d = 1\n", "}}}} func {{{"])
@pytest.mark.parametrize("language", ["python", "go", "rust", "typescript"])
def test_broken_text_has_an_outline(language: str, text: str):
    outline_of(text, language)


def test_a_language_without_a_grammar_declares_nothing():
    assert outline_of("PRINT 1", "basic").declarations == ()


@pytest.mark.timeout(60)  # a watchdog: what grows with the square of the text takes far longer
@pytest.mark.parametrize("language", ["ruby", "javascript", "python"])
@pytest.mark.parametrize(
    "text", ['x = "' + "6f" * 100_000 + '"\n', "require" + " " * 100_000 + "x\n"]
)
def test_a_document_of_one_long_line_is_outlined_at_once(text, language):
    assert outline_of(text, language).declarations == ()


@pytest.mark.parametrize(
    "line",
    ["require 'a/one'", 'require("a/one")', "require_relative  ( 'a/one' )", "require'a/one'"],
)
def test_what_is_required_is_imported(line):
    assert outline_of(f"{line}\n", "ruby").imported >= {"a", "one"}
