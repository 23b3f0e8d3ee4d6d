"""What is read of other documents, and how long it stays the same."""

from __future__ import annotations

from lsp_server.document.recent_edits import RecentEdits
from lsp_server.document.related import MAX_CHARS, OpenDocument, RelatedText

CART = """\
class Cart:
    def total(self, currency: str) -> int:
        return sum(self.prices[currency])


def unrelated():
    return None
"""
CHECKOUT = """\
from shop.cart import Cart

def pay(cart: Cart, currency: str) -> int:
    return cart."""
ROOM = 1000
NAMES = len("# fruit.py\n# checkout.py\n")


def document(text: str, name: str = "/shop/checkout.py", language: str = "python") -> OpenDocument:
    return OpenDocument(name=f"file://{name}", path=name, language=language, text=text)


def related(
    text: str, *others: OpenDocument, room: int = ROOM, edits: RecentEdits | None = None
) -> str:
    return RelatedText(edits).before(document(text), len(text), others, room)


def paragraph(*names: str) -> str:
    """A stretch of its own, whose lines use these names."""
    return "".join(f"use({name})\n" for name in names) + "filler\n" * (14 - len(names)) + "\n"


def test_an_imported_document_shows_its_signatures_next_to_the_text():
    text = related(CHECKOUT, document(CART, "/shop/cart.py"))
    assert text == (
        "# cart.py\nclass Cart:\n    def total(self, currency: str) -> int:\n\n# checkout.py\n"
    )


def test_a_declaration_that_is_not_mentioned_nearby_is_left_out():
    text = related("from cart import Cart\n\n\nx = 1\n", document(CART, "/shop/cart.py"))
    assert "total" in text
    assert "unrelated" not in text


def test_a_package_is_used_by_the_name_of_its_folder():
    text = related("import shop\n\nshop.Cart(", document(CART, "/shop/__init__.py"))
    assert text.startswith("# __init__.py\nclass Cart:\n    def total(")


def test_go_files_of_one_folder_use_each_other_without_an_import():
    here = document("func main() {\n\tadd(", "/x/main.go", "go")
    there = document("func add(a int) int {\n\treturn a\n}\n", "/x/add.go", "go")
    elsewhere = document("func add(a string) int {\n\treturn 0\n}\n", "/y/add.go", "go")
    text = RelatedText().before(here, 20, [elsewhere, there], 1000)
    assert text.endswith("// add.go\nfunc add(a int) int\n\n// main.go\n")


def test_the_stretch_with_the_most_common_words_stands_last():
    other = document(paragraph("apple") + paragraph("apple", "pear", "plum"), "/shop/fruit.py")
    text = related("apple pear plum", other)
    assert text.index("use(pear)") > text.index("use(apple)")


def test_a_very_long_document_is_left_alone():
    other = document(paragraph("apple") + "\n" * MAX_CHARS, "/shop/fruit.py")
    assert related("apple", other) == ""


def test_words_that_all_documents_share_count_less_than_a_rare_one():
    licence = paragraph("permission", "granted", "software")
    others = [document(licence, f"/shop/licence{n}.py") for n in range(5)]
    rare = document(paragraph("apple", "granted", "software"), "/shop/fruit.py")
    room = len(licence) + NAMES
    text = related("permission granted software apple", *others, rare, room=room)
    assert "use(apple)" in text


def test_text_without_a_common_word_is_left_out():
    assert related("apple", document(paragraph("tree"), "/shop/tree.py")) == ""


def test_other_languages_are_left_out_but_for_close_relatives():
    script = document(paragraph("apple"), "/shop/fruit.js", "javascript")
    assert related("apple", script) == ""
    here = document("apple", "/shop/a.ts", "typescript")
    assert "use(apple)" in RelatedText().before(here, 5, [script], ROOM)


def test_what_was_edited_of_late_goes_first():
    one = document(paragraph("apple"), "/shop/one.py")
    two = document(paragraph("apple"), "/shop/two.py")
    room = len(paragraph("apple")) + NAMES
    edits = RecentEdits()
    two_lines = document(paragraph("apple") + "two\n", "/shop/two.py")
    assert "two\n" not in related("apple", one, two_lines, room=room, edits=edits)
    edits.note(two.name, 3, 3, 0)
    changed = document(paragraph("apple").replace("filler", "edited"), "/shop/two.py")
    assert "edited" in related("apple", one, changed, room=room, edits=edits)


def test_room_is_never_exceeded_and_pieces_stay_whole():
    other = document("".join(paragraph("apple", f"name{n}") for n in range(20)), "/shop/many.py")
    whole = {paragraph("apple", f"name{n}").rstrip() for n in range(20)}
    for room in (0, 10, 100, 300, 1000):
        text = related("apple", other, room=room)
        assert len(text) <= room
        pieces = text.removesuffix("# checkout.py\n").split("\n\n")
        assert whole.issuperset(piece.removeprefix("# many.py\n") for piece in pieces if piece)


def test_typing_changes_nothing():
    chosen = RelatedText()
    others = [document(paragraph("apple") + paragraph("pear", "plum"), "/shop/fruit.py")]
    room = len(paragraph("pear", "plum")) + NAMES
    first = chosen.before(document("apple\n"), 6, others, room)
    later = "apple\npear plum\n"
    assert first != RelatedText().before(document(later), len(later), others, room)
    assert first == chosen.before(document(later), len(later), others, room)


def test_a_new_document_finds_something_once_there_are_words_to_go_by():
    chosen = RelatedText()
    others = [document(paragraph("apple"), "/shop/fruit.py")]
    assert chosen.before(document(""), 0, others, ROOM) == ""
    assert "apple" in chosen.before(document("apple"), 5, others, ROOM)


def test_an_edit_of_the_other_document_changes_nothing_at_once():
    chosen = RelatedText()
    first = chosen.before(document("apple"), 5, [document(paragraph("apple"), "/b.py")], ROOM)
    edited = document(paragraph("apple", "pear"), "/b.py")
    assert chosen.before(document("apple"), 5, [edited], ROOM) == first != ""


def test_a_choice_is_made_anew_far_away_with_less_room_or_without_its_source():
    chosen = RelatedText()
    fruit = document(paragraph("apple") + paragraph("pear"), "/shop/fruit.py")
    here = document("apple\n" + "\n" * 100 + "pear\n")
    near_apple = chosen.before(here, 5, [fruit], ROOM)
    near_pear = chosen.before(here, len(here.text), [fruit], ROOM)
    assert ("apple" in near_apple, "apple" in near_pear) == (True, False)
    assert chosen.before(here, len(here.text), [fruit], 20) == ""
    chosen.before(here, len(here.text), [fruit], ROOM)
    assert chosen.before(here, len(here.text), [], ROOM) == ""


def test_line_ends_become_those_of_a_context():
    other = document(paragraph("apple").replace("\n", "\r\n"), "/shop/fruit.py")
    text = related("apple", other)
    assert "use(apple)" in text
    assert "\r" not in text


def test_a_language_without_line_comments_names_no_file():
    here = document("apple", "/shop/a.css", "css")
    text = RelatedText().before(here, 5, [document("apple\n", "/shop/b.css", "css")], ROOM)
    assert text == "apple\n\n"
