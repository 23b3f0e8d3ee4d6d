"""Filling on demand, without an editor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_server import FakeCompleter, FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from lsp_server.ask.fill import Edit, Filled, Filler
from lsp_server.ask.session import Snapshot
from lsp_server.check.syntax import SyntaxChecker
from lsp_server.document.related import OpenDocument
from lsp_server.settings import parse_settings
from model.api import Candidate, InfillRequest, InfillResult, InvalidRequestError


class Numbering(FakeCompleter):
    """Fills hole after hole with 1, 2, 3, … and refuses more than `most` at once."""

    def __init__(self, most: int = 100) -> None:
        super().__init__()
        self._most = most
        self._next = 1

    async def complete(self, request: InfillRequest, *, on_frame: object = None) -> InfillResult:
        num_holes = len(request.between) + 1
        self.requests.append(request)
        if num_holes > self._most:
            raise InvalidRequestError("too many holes")
        texts = tuple(str(self._next + i) for i in range(num_holes))
        self._next += num_holes
        candidates = (Candidate(texts=texts, confidence=0.5),)
        return InfillResult(candidates=candidates, forwards=1, tokens=1, encoded_tokens=1, ms=1.0)


class Saying(FakeCompleter):
    """Says of each hole what `by_prefix` has for the end of what stands before it, to a request of
    several holes as if each was filled with nothing."""

    def __init__(self, by_prefix: dict[str, str]) -> None:
        super().__init__()
        self._by_prefix = by_prefix

    async def complete(self, request: InfillRequest, *, on_frame: object = None) -> InfillResult:
        self.requests.append(request)
        before, texts = "", list[str]()
        for part in (request.prefix, *request.between):
            before += part
            texts.append(next(t for end, t in self._by_prefix.items() if before.endswith(end)))
        candidates = (Candidate(texts=tuple(texts), confidence=0.5),)
        return InfillResult(candidates=candidates, forwards=1, tokens=1, encoded_tokens=1, ms=1.0)


def filler(completer: FakeCompleter, **raw: Any) -> Filler:
    settings, problems = parse_settings(raw)
    assert problems == ()
    return Filler(FakeEngine(completer), settings, SyntaxChecker())


def snapshot(
    text: str, offset: int = 0, *, path: str = "/src/a.py", language: str = "python"
) -> Snapshot:
    return Snapshot(document="d", path=path, language=language, text=text, offset=offset)


def applied(text: str, filled: Filled) -> str:
    (filling, *_) = filled.fillings
    for edit in reversed(filling.edits):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


async def fill_holes(
    text: str, completer: FakeCompleter, report: Callable[[int, int], None] = lambda a, b: None
) -> Filled:
    return await filler(completer).holes(snapshot(text), report)


HOLES = "a = <FILL>\nb = <FILL>\nc = <FILL>\n"


async def test_holes_that_are_close_are_one_request():
    completer = Numbering()
    filled = await fill_holes(HOLES, completer)
    assert applied(HOLES, filled) == "a = 1\nb = 2\nc = 3\n"
    (request,) = completer.requests
    assert (request.prefix, request.between, request.suffix) == (
        "a = ",
        ("\nb = ", "\nc = "),
        "\n",
    )


async def test_no_more_is_asked_for_than_the_widest_hole_may_take():
    completer = Numbering()
    await fill_holes("def f():\n    # TODO: add\n\ndef g():\n    if a:\n        ...\n", completer)
    assert [request.min_indent for request in completer.requests] == [4]
    await fill_holes("x = <FILL>\ndef g():\n    ...\n", completer)
    assert [request.min_indent for request in completer.requests] == [4, None]


async def test_what_is_filled_on_demand_has_other_documents_before_it_too():
    other = OpenDocument(name="o", path="/src/o.py", language="python", text="apple = 1\n")
    text = "apple = \npear = <FILL>\n"
    here = replace(snapshot(text, 8), others=(other,))
    completer = Numbering()
    await filler(completer).span(here, 8)
    await filler(completer).holes(here, lambda done, of: None)
    read = "# o.py\napple = 1\n\n# a.py\n"
    assert [request.prefix for request in completer.requests] == [
        f"{read}apple = ",
        f"{read}apple = \npear = ",
    ]


async def test_a_group_that_the_engine_refuses_is_halved():
    completer = Numbering(most=1)
    assert applied(HOLES, await fill_holes(HOLES, completer)) == "a = 1\nb = 2\nc = 3\n"


async def test_later_groups_see_what_the_earlier_ones_wrote():
    completer = Numbering(most=1)
    await fill_holes(HOLES, completer)
    assert completer.requests[-1].prefix == "a = 1\nb = 2\nc = "
    assert completer.requests[-1].suffix == "\n"


async def test_the_line_below_a_todo_is_written_and_the_comment_stays():
    text = "def f():\r\n    # TODO: one\r\n    return 2\r\n"
    completer = FakeCompleter("x = 1\n    y = 2")
    filled = await fill_holes(text, completer)
    assert applied(text, filled) == (
        "def f():\r\n    # TODO: one\r\n    x = 1\r\n    y = 2\r\n    return 2\r\n"
    )
    assert completer.requests[0].prefix == "def f():\n    # TODO: one\n    "


async def test_what_would_break_the_syntax_leaves_its_marker():
    text = "a = <FILL>\nb = <FILL>\n"

    class Half(FakeCompleter):
        async def complete(self, request: InfillRequest, *, on_frame: Any = None) -> InfillResult:
            made = (Candidate(texts=("1", "(("), confidence=0.9),)
            return InfillResult(candidates=made, forwards=1, tokens=1, encoded_tokens=1, ms=1.0)

    assert applied(text, await fill_holes(text, Half())) == "a = 1\nb = <FILL>\n"


@pytest.mark.parametrize(
    ("language", "text", "filled"),
    [
        ("python", "f(<FILL>, <FILL>)\n", "f(1, 1)\n"),
        ("python", "x = [<FILL>, a, <FILL>] + f(<FILL>)\n", "x = [1, a, 1] + f(1)\n"),
        ("go", "package a\n\nvar x = f(<FILL>, <FILL>)\n", "package a\n\nvar x = f(1, 1)\n"),
        ("javascript", "f({ a: <FILL>, b: <FILL> });\n", "f({ a: 1, b: 1 });\n"),
        ("json", '{"a": <FILL>, "b": [<FILL>]}\n', '{"a": 1, "b": [1]}\n'),
        ("rust", "fn f() {\n    g(<FILL>, <FILL>);\n}\n", "fn f() {\n    g(1, 1);\n}\n"),
        ("lua", "f(<FILL>, <FILL>)\n", "f(1, 1)\n"),
    ],
)
async def test_no_hole_stands_in_anothers_way(language: str, text: str, filled: str):
    here = snapshot(text, language=language, path="/src/a")
    answer = await filler(FakeCompleter("1")).holes(here, lambda done, of: None)
    assert applied(text, answer) == filled


@pytest.mark.parametrize("marked", ["f(<FILL>, ", "g(<FILL>)\nf("])
async def test_a_hole_that_stays_marked_stands_in_nobodys_way(marked: str):
    text = f"{marked}2)\n"
    filled = await filler(FakeCompleter("1, ")).span(snapshot(text, len(marked)), len(marked))
    assert [filling.edits[0].text for filling in filled.fillings] == ["1, "]


async def test_a_hole_sees_what_the_one_before_really_got():
    completer = Saying({"a = (": "1)", "b = ": "2"})
    text = "a = (<FILL>)\nb = <FILL>\nb = <FILL>\n"
    assert applied(text, await fill_holes(text, completer)) == "a = (1)\nb = 2\nb = 2\n"
    first, *others = completer.requests
    assert first.between == (")\nb = ", "\nb = ")
    assert [(request.prefix, request.between) for request in others] == [
        ("a = (1)\nb = ", ()),
        ("a = (1)\nb = 2\nb = ", ()),
    ]


async def test_a_hole_behind_one_that_got_nothing_sees_its_marker():
    completer = Saying({"a = ": "((", "b = ": "2"})
    text = "a = <FILL>\nb = <FILL>\n"
    assert applied(text, await fill_holes(text, completer)) == "a = <FILL>\nb = 2\n"
    assert completer.requests[-1].prefix == "a = <FILL>\nb = "


async def test_progress_counts_the_holes():
    reports: list[tuple[int, int]] = []
    await fill_holes(HOLES, Numbering(most=1), lambda done, total: reports.append((done, total)))
    assert reports[0] == (0, 3)
    assert reports[-1] == (3, 3)
    assert reports == sorted(reports)


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("x = 1\n", "/a.py", "no hole"),
        ("<FILL>", "/.env", "excluded"),
        ("<FILL>\0", "/a.py", "binary"),
    ],
)
async def test_a_reason_is_given_where_nothing_is_filled(text, path, message):
    filled = await filler(Numbering()).holes(snapshot(text, path=path), lambda a, b: None)
    assert filled.fillings == ()
    assert filled.reason is not None
    assert message in filled.reason.message


async def test_an_engine_that_fails_is_a_reason():
    filled = await fill_holes(HOLES, FakeCompleter(fault=RuntimeError("surprise")))
    assert filled.reason is not None
    assert "internal error" in filled.reason.message


async def test_a_selection_is_replaced_but_for_the_space_at_its_edges():
    text = "def f():\n    old(1)\n    g()\n"
    start, end = text.index("    old"), text.index("    g")
    completer = FakeCompleter("new(2)")
    filled = await filler(completer).span(snapshot(text, start), end)
    assert filled.fillings[0].edits == (Edit(start=start + 4, end=end - 1, text="new(2)"),)
    assert completer.requests[0].prefix == "def f():\n    "


@pytest.mark.parametrize("eol", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("document", "text", "after"),
    [
        ("def f():\n    a = 0\n‸    \n‸    return a\n", "b = 1", "    b = 1\n"),
        ("def f():\n    a = 0\n‸    ‸\n    return a\n", "b = 1", "    b = 1"),
        ("def f():\n    a = 0\n‸\n‸    return a\n", "    b = 1", "    b = 1\n"),
        ("def f():\n    a = 0\n‸\n\n\n‸    return a\n", "    b = 1", "    b = 1\n"),
        ("def f():\n    a = 0\n‸    \n  ‸  return a\n", "b = 1", "    b = 1\n  "),
        ("def f():\n    a = 0‸\n‸    return a\n", " + 1", " + 1\n"),
        ("a = 1\n‸\n‸", "b = 2", "b = 2\n"),
        ("f(‸  ‸)\n", "1", "1"),
    ],
)
async def test_a_selection_of_blank_lines_keeps_their_last_line_end_and_indentation(
    document: str, text: str, after: str, eol: str
):
    before, inside, rest = document.replace("\n", eol).split("‸")
    here = snapshot(before + inside + rest, len(before))
    filled = await filler(FakeCompleter(text)).span(here, len(before + inside))
    assert applied(here.text, filled) == before + after.replace("\n", eol) + rest


async def test_filling_here_offers_several_ways_and_several_lines():
    text = "def f(a):\n    \n"
    completer = FakeCompleter("b = a\n    return b", "return a")
    filled = await filler(completer).span(snapshot(text, 14), 14)
    assert [filling.edits[0].text for filling in filled.fillings] == [
        "b = a\n    return b",
        "return a",
    ]
    assert completer.requests[0].candidates == 3


async def test_a_cancelled_fill_is_cancelled_in_the_engine():
    completer = FakeCompleter("1", delay_s=60)
    task = asyncio.create_task(fill_holes(HOLES, completer))
    while not completer.requests:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert completer.cancelled == 1


@given(st.text("<FIL>.: #TODa\n\r\t 😀", max_size=60))
def test_filling_changes_nothing_but_the_holes(text: str):
    filled = asyncio.run(fill_holes(text, Numbering(most=2)))
    if filled.fillings:
        end = 0
        for edit in filled.fillings[0].edits:
            assert end <= edit.start <= edit.end <= len(text)
            assert text[edit.start : edit.end] in ("<FILL>", "...", "")
            assert edit.text.strip().isdigit()
            end = edit.end
