"""What a session remembers, waits for, replaces and refuses."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from fake_server import FakeCompleter, FakeEngine

from lsp_server.ask import completion, session
from lsp_server.ask.completion import SUPERSEDED, Completion
from lsp_server.ask.fill import Filler
from lsp_server.ask.session import CompletionSession, Snapshot, rest_after
from lsp_server.check.syntax import SyntaxChecker
from lsp_server.document.related import OpenDocument
from lsp_server.settings import Settings, parse_settings
from model.api import EngineOverloadedError, EngineUnavailableError, SupersededError


def settings(**raw: Any) -> Settings:
    parsed, problems = parse_settings({"debounceMs": 0, **raw})
    assert problems == ()
    return parsed


def texts(completion: Completion) -> list[str]:
    return [suggestion.text for suggestion in completion.suggestions]


def snapshot(marked: str, *, language: str = "python", path: str = "/src/a.py") -> Snapshot:
    """A document with `|` for the cursor."""
    before, _, after = marked.partition("|")
    return Snapshot(
        document=f"file://{path}",
        path=path,
        language=language,
        text=before + after,
        offset=len(before),
    )


class Window:
    """A session on a fake engine."""

    def __init__(
        self,
        *made: str,
        delay_s: float = 0.0,
        loading_s: float = 0.0,
        failure: str = "",
        fault: Exception | None = None,
        **raw: Any,
    ) -> None:
        self.completer = FakeCompleter(*made, delay_s=delay_s, fault=fault)
        engine = FakeEngine(self.completer, loading_s=loading_s, failure=failure)
        self.session = CompletionSession(engine, settings(**raw), SyntaxChecker())

    async def complete(self, marked: str, *, explicit: bool = False, **where: str) -> Completion:
        return await asyncio.wait_for(
            self.session.complete(snapshot(marked, **where), explicit=explicit), 10
        )


async def test_a_suggestion_stays_while_the_user_types_into_it():
    window = Window("max(a,\n    b)")
    assert texts(await window.complete("x = |\r\ny = 2")) == ["max(a,\r\n    b)"]
    assert texts(await window.complete("x = max(a,|\r\ny = 2")) == ["\r\n    b)"]
    assert texts(await window.complete("x = max(a,\r\n  |\r\ny = 2")) == ["  b)"]
    assert len(window.completer.requests) == 1


async def test_going_back_finds_the_earlier_suggestion_again():
    window = Window("max(a, b)")
    await window.complete("x = |\n")
    await window.complete("x = 1|\n")
    assert texts(await window.complete("x = |\n")) == ["max(a, b)"]
    assert len(window.completer.requests) == 2


@pytest.mark.parametrize(
    "then",
    ["x = mix|\n", "x = max(a, b)|\n", "x = ma|\nz", "w = ma|\n", "x =|\n"],
    ids=["typed something else", "accepted it", "edited below", "edited above", "erased"],
)
async def test_anything_but_typing_into_it_asks_the_engine_again(then):
    window = Window("max(a, b)")
    await window.complete("x = |\n")
    await window.complete(then)
    assert len(window.completer.requests) == 2


async def test_a_bracket_that_the_editor_closes_does_not_end_a_suggestion():
    window = Window("print(x)")
    assert texts(await window.complete("|\n")) == ["print(x)"]
    assert texts(await window.complete("print(|)\n")) == ["x"]
    assert len(window.completer.requests) == 1


async def test_what_is_typed_instead_is_clamped_and_the_rest_asked_for_anew():
    window = Window("max(a, b)")
    await window.complete("x = |\n")
    window.completer.texts = ("min(a, b)",)
    assert texts(await window.complete("x = mi|\n")) == ["n(a, b)"]
    request = window.completer.requests[-1]
    assert (request.prefix, request.typed, request.suffix) == ("x = ", "mi", "\n")


async def test_the_rest_of_the_last_suggestion_is_a_draft():
    window = Window("max(a, b)")
    await window.complete("x = |\n")
    await window.complete("x = mi|\n")
    await window.complete("x = max(a|\n", explicit=True)
    await window.complete("y = |\n")
    assert [(r.typed, r.draft) for r in window.completer.requests] == [
        ("", ""),
        ("mi", "(a, b)"),
        ("max(a", ", b)"),
        ("", ""),
    ]


async def test_a_draft_has_the_engines_line_ends():
    window = Window("f(\n    a,\n)")
    await window.complete("x = |\r\ny = 2")
    await window.complete("x = g|\r\ny = 2")
    assert window.completer.requests[-1].draft == "(\n    a,\n)"


@pytest.mark.parametrize(
    ("text", "typed", "rest"),
    [
        ("max(a, b)", "", "max(a, b)"),
        ("max(a, b)", "max(", "a, b)"),
        ("max(a, b)", "min(", "a, b)"),
        ("max(a, b)", "min(c, ", "b)"),
        ("self.total(numbers)", "this.tot", "al(numbers)"),
        ("a + b", "a - ", ""),
        ("a", "f(x)", ""),
        ("é = 1", "ö", " = 1"),
    ],
)
def test_word_stands_for_word_in_a_draft(text, typed, rest):
    assert rest_after(text, typed) == rest


async def test_what_is_typed_is_counted_from_the_last_answer():
    window = Window("max(a, b)")
    await window.complete("x = |\n")
    window.completer.texts = ("min(a, b)",)
    await window.complete("x = mi|\n")
    window.completer.texts = ("d(a)",)
    assert texts(await window.complete("x = mid|\n")) == ["(a)"]
    request = window.completer.requests[-1]
    assert (request.prefix, request.typed) == ("x = mi", "d")


async def test_a_long_text_typed_instead_is_context_like_any_other():
    window = Window("max(a, b)")
    await window.complete("x = |\n")
    window.completer.texts = ("",)
    await window.complete(f"x = {'y' * 60}|\n")
    assert window.completer.requests[-1].typed == ""


async def test_an_edit_below_is_a_new_place():
    window = Window("max(a, b)")
    await window.complete("x = |\n")
    await window.complete("x = mi|\nz")
    assert window.completer.requests[-1].typed == ""


async def test_a_person_who_asks_gets_more_than_the_automatic_answer_held():
    window = Window("1", "2")
    await window.complete("x = |\n")
    assert texts(await window.complete("x = |\n", explicit=True)) == ["1", "2"]
    assert len(window.completer.requests) == 2
    await window.complete("x = |\n")
    assert len(window.completer.requests) == 2


async def test_a_forgotten_document_is_asked_about_again():
    window = Window("1")
    await window.complete("x = |\n")
    window.session.forget("file:///src/a.py")
    await window.complete("x = |\n")
    assert len(window.completer.requests) == 2


@pytest.mark.parametrize(
    ("raw", "where", "message"),
    [
        ({"enabled": False}, {}, "disabled"),
        ({"languages": {"go": False}}, {"language": "go"}, "disabled for go"),
        ({}, {"path": "/src/.env"}, "excluded file"),
        ({"trigger": "manual"}, {}, "trigger is manual"),
        ({"maxFileKB": 1}, {}, "maxFileKB"),
    ],
)
async def test_a_refusal_says_why_and_asks_no_engine(raw, where, message):
    window = Window("1", **raw)
    completion = await window.complete("x = |\n" + "#" * 2000, **where)
    assert completion.suggestions == ()
    assert completion.reason is not None
    assert completion.reason.kind == "inactive"
    assert message in completion.reason.message
    assert window.completer.requests == []


async def test_a_manual_trigger_still_answers_a_person():
    window = Window("1", trigger="manual")
    assert texts(await window.complete("x = |\n", explicit=True)) == ["1"]


async def test_a_language_without_grammar_completes_unchecked():
    window = Window("(((")
    (suggestion,) = (await window.complete("x = |\n", language="klingon")).suggestions
    assert suggestion.new_syntax_errors is None


async def test_a_candidate_that_breaks_the_document_is_dropped():
    completion = await Window("(((").complete("x = |\n")
    assert completion.reason is not None
    assert completion.reason.message == "no candidate without new syntax errors"


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (EngineOverloadedError("the engine is busy"), "warning", "the engine is busy"),
        (EngineUnavailableError("the engine has crashed"), "warning", "the engine has crashed"),
        (RuntimeError("surprise"), "error", "internal error"),
    ],
)
async def test_an_error_becomes_a_reason(fault, kind, message):
    completion = await Window(fault=fault).complete("x = |\n")
    assert completion.suggestions == ()
    assert completion.reason is not None
    assert completion.reason.kind == kind
    assert message in completion.reason.message


async def test_an_engine_that_supersedes_is_not_worth_a_reason_of_its_own():
    completion = await Window(fault=SupersededError("newer")).complete("x = |\n")
    assert completion.reason == SUPERSEDED


async def test_while_the_model_loads_the_deadline_passes_with_a_reason():
    window = Window("1", loading_s=30, deadlineMs={"auto": 30})
    completion = await window.complete("x = |\n")
    assert completion.reason is not None
    assert completion.reason.message == "engine is loading the model"


async def test_waiting_for_the_model_counts_against_the_requests_deadline():
    window = Window("1", loading_s=0.2, deadlineMs={"auto": 5000})
    await window.complete("x = |\n")
    deadline_ms = window.completer.requests[0].deadline_ms
    assert deadline_ms is not None
    assert 0 < deadline_ms <= 4800


async def test_cancelling_propagates_to_the_engine():
    window = Window("1", delay_s=60, deadlineMs={"auto": 60_000})
    asked = asyncio.create_task(window.complete("x = |\n"))
    await _until(lambda: bool(window.completer.requests))
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await _until(lambda: window.completer.cancelled == 1)


async def test_a_newer_request_of_the_document_ends_the_older_in_the_engine_too():
    window = Window("1", delay_s=0.2)
    older = asyncio.create_task(window.complete("x = |\n"))
    await _until(lambda: bool(window.completer.requests))
    elsewhere = asyncio.create_task(window.complete("x = |\n", path="/src/b.py"))
    assert texts(await window.complete("xy = |\n")) == ["1"]
    assert (await older).reason == SUPERSEDED
    assert texts(await elsewhere) == ["1"]
    assert window.completer.cancelled == 1


async def test_typing_on_within_the_debounce_spares_the_engine():
    window = Window("1", debounceMs=300)
    older = asyncio.create_task(window.complete("x = |\n"))
    await asyncio.sleep(0)
    newer = await window.complete("xy = |\n")
    assert (await older).reason == SUPERSEDED
    assert texts(newer) == ["1"]
    assert len(window.completer.requests) == 1


async def test_a_person_who_asks_waits_for_no_debounce():
    window = Window("1", debounceMs=60_000)
    assert texts(await window.complete("x = |\n", explicit=True)) == ["1"]


async def _until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


OTHER = OpenDocument(
    name="file:///src/fruit.py",
    path="/src/fruit.py",
    language="python",
    text="def peel(apple):\n    return apple\n",
)
READS_OTHERS = {"context": {"openFiles": True, "prefixTokens": 64}}


def beside_fruit(marked: str) -> Snapshot:
    return replace(snapshot(marked), others=(OTHER,))


async def test_the_text_of_other_documents_is_read_before_the_windows_own():
    window = Window("peel(apple)", **READS_OTHERS)
    await window.session.complete(beside_fruit("apple = 1\nx = |\n"), explicit=False)
    (request,) = window.completer.requests
    assert request.prefix == f"# fruit.py\n{OTHER.text}\n# a.py\napple = 1\nx = "


async def test_a_suggestion_stays_although_other_text_is_read_by_then():
    window = Window("peel(apple)", **READS_OTHERS)
    await window.session.complete(beside_fruit("apple = 1\nx = |\n"), explicit=False)
    marked = "apple = 1\nx = pe|\n"
    assert texts(await window.complete(marked)) == ["el(apple)"]
    assert len(window.completer.requests) == 1


async def test_what_is_typed_instead_is_asked_for_behind_the_same_text():
    window = Window("peel(apple)", **READS_OTHERS)
    await window.session.complete(beside_fruit("apple = 1\nx = |\n"), explicit=False)
    window.completer.texts = ("cut(apple)",)
    await window.session.complete(beside_fruit("apple = 1\nx = c|\n"), explicit=False)
    window.completer.texts = ("cook(apple)",)
    await window.session.complete(beside_fruit("apple = 1\nx = co|\n"), explicit=False)
    first, *others = window.completer.requests
    assert [(request.prefix, request.typed) for request in others] == [
        (first.prefix, "c"),
        (first.prefix + "c", "o"),
    ]


async def test_a_window_that_is_full_reads_no_other_text():
    window = Window("peel(apple)", **READS_OTHERS)
    await window.session.complete(beside_fruit("apple = 1\n" * 40 + "x = |\n"), explicit=False)
    (request,) = window.completer.requests
    assert "def peel" not in request.prefix


async def test_an_engine_that_hangs_costs_the_answer_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "_ENGINE_GRACE_S", 0.01)
    window = Window("1", delay_s=60, deadlineMs={"auto": 1, "manual": 1})
    engine = FakeEngine(window.completer)
    filler = Filler(engine, settings(deadlineMs={"manual": 1000}), SyntaxChecker())
    await (await engine.completer(5)).close()
    hung = "the engine did not answer in time"
    for explicit in (False, True):
        completion = await window.complete("x = |\n", explicit=explicit)
        assert completion.reason is not None
        assert (completion.reason.kind, completion.reason.message) == ("warning", hung)
    filled = await asyncio.wait_for(filler.span(snapshot("x = |\n"), 4), 10)
    assert filled.reason is not None
    assert filled.reason.message == hung


async def test_what_takes_long_here_is_not_held_against_the_engine(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(session, "_ENGINE_GRACE_S", 0.0)

    def slowly(*about: Any, **how: Any) -> list[Any]:
        time.sleep(0.2)
        return drafted(*about, **how)

    drafted = completion.draft_suggestions
    monkeypatch.setattr(completion, "draft_suggestions", slowly)
    window = Window("1", deadlineMs={"manual": 100})
    assert texts(await window.complete("x = |\n", explicit=True)) == ["1"]
