"""The completion pipeline: trimming, checking, ranking, and what a session remembers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from fake_server import FakeCompleter, FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from lsp_server.completion import (
    SUPERSEDED,
    AdaptiveDebounce,
    Completion,
    CompletionSession,
    Snapshot,
    complete_context,
    infill_request,
    select_suggestions,
    trim_candidate,
)
from lsp_server.context import InfillContext
from lsp_server.settings import Settings, parse_settings
from lsp_server.syntax import SyntaxChecker
from model.api import Candidate, EngineOverloadedError, EngineUnavailableError, SupersededError


def settings(**raw: Any) -> Settings:
    parsed, problems = parse_settings({"debounceMs": 0, **raw})
    assert problems == ()
    return parsed


def candidates(**confidences: float) -> list[Candidate]:
    return [Candidate(texts=(text,), confidence=c) for text, c in confidences.items()]


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


# Trimming


@pytest.mark.parametrize(
    ("candidate", "following", "kept"),
    [
        ("a, b)", ")", "a, b"),  # the editor had closed the bracket already
        (", f(y)", ")", ", f(y)"),  # this bracket is the candidate's own
        ("f(y))", ")", "f(y)"),
        ('hello"', '")\n', "hello"),
        ('hello")', '")\n', "hello"),
        ('"a"', '"', '"a"'),  # a string of its own before a quote
        ("x, a, b):", "a, b):\n", "x, "),  # repeats the rest of the line
        ("x, ", "a, b", "x, "),  # the space belongs before what follows
        ("x ", " + 1", "x"),  # ... unless there is one
        ("return x  \n", "\n", "return x"),
        ("y = 1\n    return y", "\n    return y\n", "y = 1"),  # repeats the next line
        ("{\n    x\n}", "\n}\n", "{\n    x\n}"),  # closes its own block
        ("x\n}", "\n}\n", "x"),  # closes a block that is closed already
        ("x\n}", "", "x\n}"),
        ("max", "imum\n", "max"),
        ("   \n  ", "", ""),
        (")", ")\n", ""),
    ],
)
def test_what_stands_right_of_the_cursor_is_never_doubled(candidate, following, kept):
    assert trim_candidate(candidate, following, single_line=False) == kept


@pytest.mark.parametrize(
    ("following", "kept"), [(")\n", "f(x"), ("\n", "f(x\n  , y)"), ("  \n", "f(x\n  , y)")]
)
def test_a_single_line_is_kept_only_before_text_on_the_line(following, kept):
    assert trim_candidate("f(x\n  , y)", following, single_line=True) == kept


@given(
    text=st.text("ab()[]\"' \n", max_size=30),
    following=st.text("ab()[]\"' \n", max_size=30),
    single_line=st.booleans(),
)
def test_trimming_only_ever_shortens_from_the_end(text, following, single_line):
    kept = trim_candidate(text, following, single_line=single_line)
    assert text.startswith(kept)
    assert kept == "" or kept.strip()
    if single_line and following.partition("\n")[0].strip():
        assert "\n" not in kept


# Selecting


def select(
    made: Sequence[Candidate],
    *,
    errors: dict[str, int] | None = None,
    explicit: bool = True,
    context: InfillContext | None = None,
    **raw: Any,
) -> Completion:
    return select_suggestions(
        made,
        context or InfillContext(prefix="x = ", suffix="\n"),
        settings(**raw),
        explicit=explicit,
        count_new_errors=None if errors is None else lambda texts: errors[texts[0]],
    )


def test_candidates_rank_by_new_errors_first_and_confidence_second():
    made = candidates(a=0.5, b=0.9, c=0.7)
    ranked = select(made, errors={"a": 0, "b": 1, "c": 0}, syntaxCheck="warn")
    assert texts(ranked) == ["c", "a", "b"]
    assert [s.new_syntax_errors for s in ranked.suggestions] == [0, 0, 1]


def test_strict_mode_drops_candidates_with_new_errors_and_says_so():
    made = candidates(a=0.5, b=0.9)
    assert texts(select(made, errors={"a": 0, "b": 1})) == ["a"]
    nothing = select(made, errors={"a": 2, "b": 1})
    assert nothing.reason is not None
    assert nothing.reason.message == "no candidate without new syntax errors"


def test_without_the_check_no_candidate_is_parsed():
    completion = select(candidates(a=0.5), errors={}, syntaxCheck="off")
    assert [s.new_syntax_errors for s in completion.suggestions] == [None]


def test_candidates_below_the_confidence_are_dropped_with_a_reason():
    assert texts(select(candidates(a=0.5, b=0.9), explicit=False, minConfidence=0.6)) == ["b"]
    nothing = select(candidates(a=0.5), explicit=False, minConfidence=0.6)
    assert nothing.reason is not None
    assert "0.6" in nothing.reason.message


def test_a_person_who_asks_is_shown_unsure_candidates_too():
    assert texts(select(candidates(a=0.5), explicit=True, minConfidence=0.6)) == ["a"]


@pytest.mark.parametrize("text", ["", "  \n ", "return x", "return x\n\nprint(x)"])
def test_blank_texts_and_repeats_of_what_follows_are_dropped(text):
    context = InfillContext(prefix="", suffix="\nreturn x\n\nprint(x)\n")
    completion = select([Candidate(texts=(text,), confidence=0.9)], context=context)
    assert completion.suggestions == ()
    assert completion.reason is not None


def test_the_beginning_of_a_following_line_is_no_repeat():
    context = InfillContext(prefix="", suffix="\nreturn xyz\n")
    made = [Candidate(texts=("return x",), confidence=0.9)]
    assert texts(select(made, context=context)) == ["return x"]


def test_a_bracket_before_a_line_with_the_same_bracket_is_left_to_the_syntax_check():
    context = InfillContext(prefix="function f() {\n  if (a) {\n    b();\n  ", suffix="\n}\n")
    made = [Candidate(texts=("}",), confidence=0.9)]
    assert texts(select(made, errors={"}": 0}, context=context)) == ["}"]
    assert texts(select(made, errors={"}": 1}, context=context)) == []


def test_candidates_that_trimming_makes_equal_are_merged():
    context = InfillContext(prefix="f(", suffix=")\n")
    made = [Candidate(texts=(text,), confidence=0.9) for text in ("a", "a)")]
    assert texts(select(made, context=context)) == ["a"]


def test_every_hole_gets_its_text_in_the_documents_line_endings():
    context = InfillContext(prefix="a", between=("b",), suffix="c", eol="\r\n")
    made = [Candidate(texts=("1\n2", "3\n4"), confidence=0.9)]
    (suggestion,) = select(made, context=context).suggestions
    assert suggestion.texts == ("1\r\n2", "3\r\n4")
    assert suggestion.text == "1\r\n2"


def test_the_request_says_what_the_settings_say():
    chosen = settings(
        deadlineMs={"auto": 111, "manual": 222}, candidates={"manual": 4}, maxNewTokens=9, steps=5
    )
    context = InfillContext(
        prefix="a", suffix="b", starts_file=False, ends_file=False, language="go"
    )
    asked = infill_request(context, chosen, explicit=True, document="d", client="c")
    assert (asked.priority, asked.deadline_ms, asked.candidates) == ("manual", 222, 4)
    assert (asked.max_new_tokens, asked.steps) == (9, 5)
    assert (asked.prefix, asked.suffix, asked.language) == ("a", "b", "go")
    assert (asked.starts_file, asked.ends_file) == (False, False)
    assert (asked.document, asked.client) == ("d", "c")
    automatic = infill_request(context, chosen, explicit=False, document="d", client="c")
    assert (automatic.priority, automatic.deadline_ms) == ("auto", 111)


async def test_one_round_returns_the_engines_bill_with_the_suggestions():
    context = InfillContext(prefix="x = ", suffix="\n", language="python")
    completion = await complete_context(
        FakeCompleter("(", "1"),
        context,
        settings(),
        explicit=True,
        count_new_errors=lambda texts: SyntaxChecker().new_errors_in(context, texts),
    )
    assert texts(completion) == ["1"]
    assert completion.result is not None
    assert completion.result.forwards == 1


# A session


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


def test_the_adaptive_debounce_follows_the_latency_within_its_bounds():
    debounce = AdaptiveDebounce()
    assert debounce.delay_ms == 40
    for latency_ms, low, high in ((5000, 150, 150), (10, 40, 40), (200, 90, 100)):
        for _ in range(40):
            debounce.observe(latency_ms)
        assert low <= debounce.delay_ms <= high + 1


async def _until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
