"""What breaks the syntax is written again, and otherwise; what is right before it stays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest

from lsp_server.ask.completion import Completion, complete_context
from lsp_server.check.syntax import SyntaxChecker, SyntaxPlace
from lsp_server.document.context import InfillContext
from lsp_server.settings import parse_settings
from model.api import Candidate, InfillRequest, InfillResult, InvalidRequestError

Script = Callable[[InfillRequest], list[tuple[str, ...]]]


class Scripted:
    """Answers each request as a function of it says."""

    def __init__(
        self, script: Script, *, confidences: tuple[float, ...] = (0.5,), delay_s: float = 0.0
    ) -> None:
        """`confidences` are the candidates' of each answer, over and over."""
        self._script = script
        self._confidences = confidences
        self._delay_s = delay_s
        self.requests: list[InfillRequest] = []

    async def complete(self, request: InfillRequest, *, on_frame: Any = None) -> InfillResult:
        self.requests.append(request)
        await asyncio.sleep(self._delay_s)
        candidates = tuple(
            Candidate(texts=texts, confidence=confidence)
            for texts, confidence in zip(
                self._script(request), cycle(self._confidences), strict=False
            )
        )
        return InfillResult(candidates=candidates, forwards=1, tokens=1, encoded_tokens=0, ms=1.0)

    async def close(self) -> None: ...


async def completed(
    completer: Scripted, prefix: str, suffix: str = "\n", *, explicit: bool = True, **raw: Any
) -> Completion:
    settings, problems = parse_settings(raw)
    assert problems == ()
    context = InfillContext(prefix=prefix, suffix=suffix, language="python")
    place = SyntaxPlace(SyntaxChecker(), context)
    return await complete_context(completer, context, place, settings, explicit=explicit)


async def test_from_where_the_parser_stumbles_it_is_written_again_and_otherwise():
    completer = Scripted(
        lambda r: [(r.typed + "* 2 + g(b))",)] if r.avoid else [("f(a + ) + g(b)",)]
    )
    completion = await completed(completer, "x = ")
    asked, repair = completer.requests
    assert (repair.prefix, repair.suffix, repair.between) == (asked.prefix, asked.suffix, ())
    assert repair.typed == "f(a "
    assert repair.avoid == ("+ ) + g(b)",)
    assert [s.text for s in completion.suggestions] == ["f(a * 2 + g(b))"]
    assert completion.suggestions[0].new_syntax_errors == 0
    assert completion.syntax is not None
    assert (completion.syntax.broken, completion.syntax.repaired) == (1, 1)


async def test_nothing_that_was_tried_is_written_again():
    def script(request: InfillRequest) -> list[tuple[str, ...]]:
        known = ("+ ) + g(b)", "* ) + g(b)", "- 1)")
        new = next((text for text in known if text not in request.avoid), "")
        return [((request.typed or "f(a ") + new,)]

    completer = Scripted(script)
    completion = await completed(completer, "x = ", maxRepairRounds=3)
    assert [r.avoid for r in completer.requests[:2]] == [(), ("+ ) + g(b)",)]
    heads = {request.typed for request in completer.requests[1:]}
    assert len(heads) == len(completer.requests[1:]), "a word less each time"
    assert all(r.avoid for r in completer.requests[1:])
    assert [s.text for s in completion.suggestions] in ([], ["f(a - 1)"])


async def test_a_bracket_that_is_missing_is_asked_for_at_the_end():
    completer = Scripted(lambda r: [(f"{r.typed}))",)] if r.typed else [("bar(a",)])
    completion = await completed(
        completer, "foo(1, ", "\ny = 2\n", explicit=False, minConfidence=0.1
    )
    assert [s.text for s in completion.suggestions] == ["bar(a))"]
    asked, repair = completer.requests
    assert (repair.typed, repair.avoid) == ("bar(a", ())
    assert (asked.max_lines, repair.max_lines) == (1, None)


async def test_the_first_line_that_is_wrong_whatever_follows_is_written_on():
    text = "if a\n        return 1\n    return 2"
    completer = Scripted(
        lambda r: [(f"{r.typed}:\n        return 1\n    return 2",)] if r.avoid else [(text,)]
    )
    completion = await completed(completer, "def f(a):\n    ", "\n")
    assert completer.requests[1].typed == "if a"
    assert completer.requests[1].avoid == ("\n        return 1\n    return 2",)
    assert completion.suggestions[0].text == "if a:\n        return 1\n    return 2"


async def test_what_is_written_again_is_shortened_like_any_other_text():
    completer = Scripted(
        lambda r: [(r.typed + "* 2)\ny = 3\nz = 4",)] if r.avoid else [("f(a + )",)]
    )
    completion = await completed(completer, "x = ", explicit=False, minConfidence=0.1)
    assert [s.text for s in completion.suggestions] == ["f(a * 2)"]


async def test_a_repaired_text_is_as_sure_as_what_was_kept_and_what_is_new():
    class Telling(Scripted):
        async def complete(self, request: InfillRequest, *, on_frame: Any = None) -> InfillResult:
            self.requests.append(request)
            if request.avoid:
                made = Candidate(
                    texts=("f(a * 2)",),
                    confidence=0.8 * 0.5,
                    probabilities=(0.8, 0.5),
                    token_ends=(7, 8),
                )
            else:
                made = Candidate(
                    texts=("f(a + )",),
                    confidence=0.5 * 0.5 * 0.1,
                    probabilities=(0.5, 0.5, 0.1),
                    token_ends=(2, 4, 7),
                )
            return InfillResult(candidates=(made,), forwards=1, tokens=1, encoded_tokens=0, ms=1.0)

    completer = Telling(lambda r: [])
    completion = await completed(completer, "x = ")
    assert [s.text for s in completion.suggestions] == ["f(a * 2)"]
    assert completion.suggestions[0].confidence == pytest.approx(0.5 * 0.5 * 0.8 * 0.5)


@pytest.mark.parametrize("rounds", [0, 1, 2])
async def test_it_is_tried_as_often_as_the_setting_says(rounds):
    completer = Scripted(lambda r: [(f"{r.typed}(((", *[""] * len(r.between))])
    completion = await completed(completer, "x = ", maxRepairRounds=rounds)
    assert len(completer.requests) == 1 + rounds
    assert completion.suggestions == ()
    assert completion.reason is not None
    assert completion.reason.message == "no candidate without new syntax errors"
    assert completion.syntax is not None
    assert (completion.syntax.broken, completion.syntax.repaired) == (1, 0)


async def test_without_the_check_nothing_is_repaired():
    completer = Scripted(lambda r: [("(((",)])
    completion = await completed(completer, "x = ", syntaxCheck="off")
    assert len(completer.requests) == 1
    assert completion.suggestions[0].text == "((("


def spare_comma(request: InfillRequest) -> list[tuple[str, ...]]:
    """`f(a b)`, and for its repair a comma."""
    if not request.avoid:
        return [(f"{request.typed}f(a b)",)]
    return [(f"{request.typed}, c)",)]


async def test_a_repair_the_model_is_not_sure_of_is_not_shown_unasked():
    sure = await completed(Scripted(spare_comma), "x = ", explicit=False, minConfidence=0.2)
    unsure = await completed(Scripted(spare_comma), "x = ", explicit=False, minConfidence=0.4)
    assert [s.text for s in sure.suggestions] == ["f(a , c)"]
    assert sure.suggestions[0].confidence == 0.25
    assert unsure.suggestions == ()


async def test_one_way_the_model_is_not_sure_of_keeps_back_no_other():
    def script(request: InfillRequest) -> list[tuple[str, ...]]:
        if not request.avoid:
            return [("f(a b)",)]
        return [(f"{request.typed}, {name})",) for name in "cd"]

    completer = Scripted(script, confidences=(0.5, 0.9))
    completion = await completed(completer, "x = ", explicit=False, minConfidence=0.4)
    assert [s.text for s in completion.suggestions] == ["f(a , d)"]


async def test_an_engine_that_refuses_leaves_the_text_as_it_was():
    def script(request: InfillRequest) -> list[tuple[str, ...]]:
        if request.typed:
            raise InvalidRequestError("too long")
        return [("a b",)]

    completion = await completed(Scripted(script), "x = ", syntaxCheck="warn")
    assert [s.text for s in completion.suggestions] == ["a b"]


async def test_no_repair_begins_after_the_deadline():
    completer = Scripted(lambda r: [("a b",)], delay_s=0.1)
    started = time.monotonic()
    await completed(completer, "x = ", deadlineMs={"manual": 50})
    assert len(completer.requests) == 1
    assert time.monotonic() - started < 5


async def test_what_was_typed_already_is_not_repeated_by_a_repair():
    completer = Scripted(spare_comma)
    settings, _ = parse_settings({})
    context = InfillContext(prefix="x = ", suffix="\n", language="python")
    typed = InfillContext(prefix="x = vi", suffix="\n", language="python")
    completion = await complete_context(
        completer,
        context,
        SyntaxPlace(SyntaxChecker(), typed),
        settings,
        explicit=True,
        typed="vi",
    )
    assert [s.text for s in completion.suggestions] == ["f(a , c)"]
    assert completer.requests[1].typed == "vif(a "
