"""Where a middle ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.backbone.ending import Ending


def kept(text: str, following: str = "", **rules: Any) -> str:
    """What a model's text is cut to that comes character by character."""
    ending = Ending(following, **rules)
    for length in range(len(text) + 1):
        cut = ending.cut(text[:length])
        if cut is not None:
            return text[:cut]
    return text


def test_nothing_ends_a_text_without_rules():
    assert kept("a\nb\n\n\nc") == "a\nb\n\n\nc"


@pytest.mark.parametrize(("lines", "text"), [(1, "a"), (2, "a\n  b"), (9, "a\n  b\nc")])
def test_as_many_lines_as_are_wanted(lines, text):
    assert kept("a\n  b\nc", max_lines=lines) == text


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("a\n    b\n  x", 4, "a\n    b"),
        ("a\n    b\n\n  x", 4, "a\n    b\n"),
        ("a\n\tb\n\n\tc\nx", 4, "a\n\tb\n\n\tc"),  # a tab is four columns
        ("a\n  \tb\nx", 4, "a\n  \tb"),  # wherever it begins
        ("f(\n    a,\n)\nb", 1, "f(\n    a,\n)"),
        ("f(\n    a,\n) + b\nx", 1, "f(\n    a,\n) + b"),
        ("f(\n    a,\n) + b\nx", 2, "f(\n    a,"),
        ("{\n      a\n  });\nb", 4, "{\n      a\n  });"),
        ("if a\n  b\nend\nc", 1, "if a\n  b\nend"),
        ("if a:\n    b\nelse:\n    c\nx", 1, "if a:\n    b\nelse:\n    c"),
        ("if (a) {\n  b\n} else {\n  c\n}\nx", 1, "if (a) {\n  b\n} else {\n  c\n}"),
        ("for x\n{\n  a\n}\nx", 1, "for x\n{\n  a\n}"),
        ("# why\nx = 1\ny = 2", 1, "# why\nx = 1"),
        ("    b\nelse:\n    c", 4, "    b"),  # of a block further out
        ("a\nelsewhere = 1", 1, "a"),
        ("a\nendless = 1", 1, "a"),
    ],
)
def test_a_line_indented_less_ends_it_unless_it_closes_or_goes_on(text, columns, shown):
    assert kept(text, min_indent=columns) == shown


LOOP = "    for x in xs:\n        total += x\n    return total\n"


class TestRepetition:
    @pytest.mark.parametrize(
        ("text", "following", "middle"),
        [
            # Behind the cursor's line; also after a blank line, and indented otherwise.
            ("b = 1\n    return total(a)", "\n    return total(a)\n", "b = 1"),
            ("b = 1\n\n    return total(a)", "\n    return total(a)\n", "b = 1"),
            ("b = 1\n    return total(a)", "\n\n\n    return total(a)\nx", "b = 1"),
            (
                "b = 1\n  return total(a, over=b, by=c)\n",
                "\n    return total(a, over=b, by=c)\n",
                "b = 1",
            ),
            ("b = 1\n    for x in  xs :\n        total+=x", f"\n{LOOP}", "b = 1"),
            ("    return total\n", "\n    return total\n", ""),
            # A line of its own, which the middle ends before.
            (f"    total = 0\n{LOOP}", LOOP, "    total = 0\n"),
            (f"    total = 0\n\n{LOOP}", LOOP, "    total = 0\n"),
            (LOOP, LOOP, ""),
            ("    if not xs:\n        return 0\n    return total\n\n", "    return total\n",
             "    if not xs:\n        return 0\n"),
            ("\treturn 0\n\treturn total\n}", "\treturn total\n}\n", "\treturn 0\n"),
            # The rest of the cursor's line.
            ("a, b)\n    c()", ")\n    c()\n    d()\n", "a, b"),
            ("a, f(b))\n", ")\n    c()\n", "a, f(b)"),
            ("a) + g(b)\n", ")\n    c()\n", "a) + g(b"),
            ("S)\n\n    q", ").T\n\n    p\n", "S"),  # and closes nothing twice
            ("o in s])  # code\n", " in s])\n", "o"),
            ("x > 0:\n", ":\n        return x\n", "x > 0"),
            ("x in numbers if x:\n", " if x:\n    y\n", "x in numbers"),
            ("\":\" + x)\n", ")\n", "\":\" + x"),
            ("name, number)\n", ", number)\n", "name"),
            ("ber in numbers: result += number\n", " number\n", "ber in numbers: result +="),
            ("    a,\n    b,\n)\nc = 1", ")\nc = 1\n", "    a,\n    b,\n"),
            # It leaves out the first line of what follows, and goes on with the next.
            (
                "        result.append(n)\n\n    result.append(numbers[-1])\n",
                "        result.append(delimiter)\n\n    result.append(numbers[-1])\n",
                "        result.append(n)\n",
            ),
            # It writes that line otherwise, which does not make it two.
            (
                "    for i in xs:\n        frq[i] += 1\n\n    answers = 1\n    for i in range(9):",
                "        frq[i] += 1;\n\n    answers = 1\n    for i in range(9):\n        x\n",
                "    for i in xs:\n",
            ),
            (
                "1 + x\n    yield self.first_of_all\n    return self.last_of_all_that_are\n",
                "\n    yield self.first_of_them\n    return self.last_of_all_that_are\n",
                "1 + x",
            ),
        ],
    )  # fmt: skip
    def test_what_follows_is_not_said_again(self, text, following, middle):
        assert kept(text, following) == middle

    @pytest.mark.parametrize(
        ("text", "following"),
        [
            # The same return in a branch, in front of the one that follows.
            (
                "if not a:\n        return None\n    if b:\n        return None",
                "\n    return None\n",
            ),
            ("if not a:\n        return total(a)\n    a = 1", "\n    return total(a)\nx = 1\n"),
            # A line alike that goes on otherwise.
            ("\n    self.assertEqual(f(1), 2)\n    x", "\n    self.assertEqual(f(1), 3)\n"),
            ("    x.append(1)\n    x.append(1)\n", "    x.append(1)\n    x.append(2)\n    y\n"),
            # Brackets that the middle has opened.
            ("{\n    a: {\n        b,\n    },\n    c: {", "\n    },\n}\n"),
            ("[(a), (b)", ")\n"),
            ("f(a)\n    g(b", ")\n    g(c)\n"),
            ("':)' + f(a", ")\n"),
            # A later line that is short, or stands elsewhere.
            ("    a = 1\n        b()\n", "    x = 2\n    if a:\n        b()\n        c()\n"),
        ],
    )
    def test_what_looks_like_it_is_kept(self, text, following):
        assert kept(text, following) == text

    def test_a_bracket_that_follows_cannot_be_closed_before(self):
        following = "    }\n    return ' '.join(numbers)\n"
        text = "        'nine': 9\n    }\n    numbers = numbers.split()\n"
        assert kept(text, following) == "        'nine': 9\n"
        assert kept("    a = {\n        b\n    }\n", following) == "    a = {\n        b\n    }\n"

    def test_no_block_is_begun_for_what_follows_outside_of_it(self):
        following = "    first = names.index(one)\n    second = names.index(two)\n"
        text = "        return ()\n    else:\n        first = names.index(one)\n"
        text += "        second = names.index(two)\n"
        assert kept(text, following) == "        return ()\n"

    def test_no_block_is_begun_in_place_of_the_one_that_follows(self):
        following = "\n        if n % i == 0:\n            return False\n    return None\n"
        text = "    for i in s:\n        if len(string) % i == 0:\n            return False\n"
        assert kept(text + "    return None\n", following) == "    for i in s:"

    def test_it_is_found_where_it_begins_however_much_follows(self):
        following = "\n" + "".join(f"    value_{i} = {i}\n" for i in range(200))
        assert kept("a = 1\n    value_0 = 0\n    value_1 = 1\n", following) == "a = 1"

    def test_the_cursors_own_line_has_the_indentation_that_stands_before_the_hole(self):
        following = "\n    return None\n"
        assert kept("return None\n", following, before="def f():\n    ") == ""
        assert kept("return None\n", following, before="    if a:\n        ") == "return None\n"

    def test_a_line_at_column_0_is_one_where_the_hole_begins_one(self):
        text, following = (
            "def f():\n    pass\n\n\ndef g(x):\n    return x\n",
            "def g(x):\n    return x\n",
        )
        assert kept(text, following, before="import re\n\n\n") == "def f():\n    pass\n"


class TestOutside:
    """What begins inside a block does not go on at column 0."""

    @pytest.mark.parametrize(
        ("text", "middle"),
        [
            ("    return x\n\n\ndef g():\n", "    return x"),
            ("    return x\n# Test it\n", "    return x"),
            ("    return x\n}\n\nfunction g() {", "    return x\n}"),
            ("    try:\n        x\nexcept E:\n    y\nz", "    try:\n        x\nexcept E:\n    y"),
            ("    f(\na,\n    )\nb", "    f(\na,\n    )"),
            ("    return x\n```\nThis is", "    return x"),
            ("def f():\n    x\n\ndef g():\n", "def f():\n    x\n\ndef g():\n"),
            ("def f():\n    x\n```\n", "def f():\n    x"),
        ],
    )
    def test_by_the_texts_own_first_line(self, text, middle):
        assert kept(text) == middle

    def test_by_the_line_before_the_hole(self):
        text = "return x\n\n\ndef g():\n"
        assert kept(text, before="def f():\n    ") == "return x"
        assert kept(text, before="def f(): ") == text

    def test_what_follows_keeps_its_line(self):
        assert kept("    x = 1\n\ny = 2", "    return x\n") == "    x = 1\n"
        assert kept("    x = 1\n\ny = 2", "\n    return x\n") == "    x = 1"

    def test_what_follows_keeps_its_block(self):
        text = (
            "    for c in s:\n        if c == '7':\n            n += 1\n    return n\n\ndef g():\n"
        )
        following = "        n += (c == '7')\n    return n - 1\n"
        assert kept(text, following) == "    for c in s:\n"
        text = "        a.append(b)\n    return a\n\ndef g():\n"
        assert kept(text, following) == "        a.append(b)\n"

    def test_fences_are_kept_where_there_are_some(self):
        assert kept("a\n```\nb", before="```python\n") == "a\n```\nb"


@given(
    text=st.lists(
        st.sampled_from(
            [
                "a",
                "a a a a",
                "}",
                ")",
                "(",
                "else:",
                " ",
                "\t",
                "\n",
                "\n    ",
                "```",
                "\n    " + 30 * "b",
                "\n    " + 25 * "b" + "cc",
                "\n        if a:",
                "\n            " + 30 * "b",
                "\n  a:",
            ]
        )
    ).map("".join),
    following=st.sampled_from(
        [
            "",
            "\n",
            "\nelse:\n",
            ")\n",
            " a a)\n",
            "\n    a a a a a a a\n",
            "    a a a a\n    a a\n",
            "a(\n",
            "\n    )\n    a a a a a a a a a a a a a a a a a a\n",
            "        " + 30 * "b" + "\n    a\n",
            "\n    " + 26 * "b" + "c\n    a\n    " + 30 * "b" + "\n",
        ]
    ),
    before=st.sampled_from(["", "a\n", "a\n    ", "a("]),
    lines=st.none() | st.integers(1, 4),
    columns=st.none() | st.integers(0, 5),
)
def test_what_is_sure_stays_whatever_comes(text, following, before, lines, columns):
    ending = Ending(following, lines, columns, before)
    whole, sure = len(text), 0
    for length in range(len(text) + 1):
        sure = max(sure, ending.sure(text[:length]))
        cut = ending.cut(text[:length])
        if cut is not None:
            whole = cut
            break
    assert sure <= whole
