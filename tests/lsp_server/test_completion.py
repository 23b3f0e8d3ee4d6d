"""One round of completion: selecting, checking, ranking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from fake_server import FakeCompleter

from lsp_server.ask.completion import (
    Completion,
    complete_context,
    infill_request,
    select_suggestions,
)
from lsp_server.check.extent import Reach
from lsp_server.check.syntax import SyntaxChecker, SyntaxPlace
from lsp_server.document.context import InfillContext
from lsp_server.settings import ContextSettings, Settings, parse_settings
from model.api import Candidate, InfillRequest, InfillResult


def settings(**raw: Any) -> Settings:
    parsed, problems = parse_settings({"debounceMs": 0, **raw})
    assert problems == ()
    return parsed


def texts(completion: Completion) -> list[str]:
    return [suggestion.text for suggestion in completion.suggestions]


def candidates(**confidences: float) -> list[Candidate]:
    return [Candidate(texts=(text,), confidence=c) for text, c in confidences.items()]


class KnownErrors(SyntaxChecker):
    """A checker that knows how many errors each text brings."""

    def __init__(self, errors: dict[str, int]) -> None:
        super().__init__()
        self._errors = errors

    def new_errors_in(self, context: InfillContext, texts: Sequence[str]) -> int | None:
        return self._errors[texts[0]]


def select(
    made: Sequence[Candidate],
    *,
    errors: dict[str, int] | None = None,
    explicit: bool = True,
    context: InfillContext | None = None,
    **raw: Any,
) -> Completion:
    checker = SyntaxChecker() if errors is None else KnownErrors(errors)
    place = SyntaxPlace(checker, context or InfillContext(prefix="x = ", suffix="\n"))
    return select_suggestions(made, place, settings(**raw), explicit=explicit)


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


@pytest.mark.parametrize(
    ("tokens", "probabilities", "kept"),
    [
        (("h", " =", " "), (0.6, 0.9, 0.5), ["h"]),  # 0.54, then 0.27
        (("=", " "), (0.6, 0.4), []),
        (("h", "()", " "), (0.6, 0.9, 0.5), ["h()"]),
        (("h", " +", "\n"), (0.6, 0.9, 0.5), ["h +"]),  # its line has ended
    ],
)
def test_an_operator_before_the_space_that_a_fill_ended_at_is_not_shown(
    tokens, probabilities, kept
):
    made = Candidate(
        texts=("".join(tokens),),
        confidence=math.prod(probabilities),
        finished=False,
        probabilities=probabilities,
        token_ends=tuple(len("".join(tokens[: n + 1])) for n in range(len(tokens))),
    )
    assert texts(select([made], explicit=False, minConfidence=0.3)) == kept
    assert texts(select([made], explicit=True, minConfidence=0.3)) == ["".join(tokens).rstrip()]


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        ((("foo(argument", 0.9), (", b)", 0.4)), "foo(argument, b)"),  # 0.9 x 11 keys, but open
        ((("sorted(items", 0.88), (", key=len)", 0.4)), "sorted(items, key=len)"),
        ((("first", 0.9), (" + second_one", 0.35)), "first + second_one"),
        ((("total_of_items", 0.9), (" + x", 0.4)), "total_of_items"),
        ((("foo(argument", 0.9), (", b)", 0.2)), None),  # the whole is not sure enough
        ((("items.total", 0.9), ("(numbers", 0.9), (", b)", 0.2)), "items.total"),
    ],
)
def test_a_part_that_breaks_off_inside_a_bracket_gives_way_to_another(tokens, kept):
    text, ends = "", []
    for token, _ in tokens:
        text += token
        ends.append(len(text))
    probabilities = (*(p for _, p in tokens), 1.0)
    made = Candidate(
        texts=(text,),
        confidence=math.prod(probabilities),
        probabilities=probabilities,
        token_ends=tuple(ends),
    )
    context = InfillContext(prefix="y = ", suffix="\n", language="python")
    shown = texts(select([made], explicit=False, minConfidence=0.3, context=context))
    assert shown == ([] if kept is None else [kept])


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
        deadlineMs={"auto": 111, "manual": 222},
        candidates={"manual": 4},
        maxNewTokens=9,
        steps=5,
        minConfidence=0.4,
    )
    context = InfillContext(
        prefix="a", suffix="b", starts_file=False, ends_file=False, language="go"
    )
    asked = infill_request(context, chosen, explicit=True, document="d", client="c")
    assert (asked.priority, asked.deadline_ms, asked.candidates) == ("manual", 222, 4)
    assert (asked.max_new_tokens, asked.steps) == (9, 5)
    assert (asked.prefix, asked.suffix, asked.language) == ("a", "b", "go")
    assert (asked.document, asked.client) == ("d", "c")
    automatic = infill_request(context, chosen, explicit=False, document="d", client="c")
    assert (automatic.priority, automatic.deadline_ms) == ("auto", 111)
    assert (asked.max_lines, asked.min_indent) == (None, None)


@pytest.mark.parametrize(
    ("explicit", "wanted", "least"),
    [
        (False, Reach(max_lines=1), 0.4),
        (False, Reach(min_indent=4), 0.0),  # each of several lines is judged by itself
        (True, Reach(max_lines=1), 0.0),
    ],
)
def test_the_engine_may_give_up_an_unsure_line_but_not_several(explicit, wanted, least):
    asked = infill_request(
        InfillContext(prefix="a", suffix="b"),
        settings(minConfidence=0.4),
        explicit=explicit,
        document="d",
        client="c",
        wanted=wanted,
    )
    assert (asked.max_lines, asked.min_indent) == (wanted.max_lines, wanted.min_indent)
    assert asked.min_confidence == least


@pytest.mark.parametrize("whole_file", [True, False])
def test_what_the_file_repeats_weighs_in_unless_switched_off(whole_file: bool):
    chosen = Settings(context=ContextSettings(whole_file=whole_file))
    context = InfillContext(prefix="x = ", suffix="\n", before="import x\n", after="print(x)\n")
    request = infill_request(context, chosen, explicit=False, document="d", client="c")
    assert (request.before, request.after) == ("import x\n", "print(x)\n")
    assert (chosen.context.far_chars > 0) is whole_file


async def test_one_round_returns_the_engines_bill_with_the_suggestions():
    context = InfillContext(prefix="x = ", suffix="\n", language="python")
    completion = await complete_context(
        FakeCompleter("(", "1"),
        context,
        SyntaxPlace(SyntaxChecker(), context),
        settings(),
        explicit=True,
    )
    assert texts(completion) == ["1"]
    assert completion.result is not None
    assert completion.result.forwards == 1


@pytest.mark.parametrize(
    ("prefix", "suffix", "max_lines", "min_indent"),
    [
        ("print(", ", a)\n", 1, None),
        ("def f():\n    ", "\n", None, 4),
        ("def f():\n    x = ", "\n", None, 5),
    ],
)
async def test_no_more_is_asked_for_than_could_be_shown(prefix, suffix, max_lines, min_indent):
    completer = FakeCompleter("1")
    context = InfillContext(prefix=prefix, suffix=suffix, language="python")
    place = SyntaxPlace(SyntaxChecker(), context)
    await complete_context(completer, context, place, settings(), explicit=False, draft="2")
    (request,) = completer.requests
    assert (request.max_lines, request.min_indent) == (max_lines, min_indent)
    assert request.draft == "2"


def test_a_body_is_shown_although_all_of_it_together_is_unlikely():
    lines = [f"line_{i}()" for i in range(8)]
    text = "\n    ".join(lines)
    ends = [text.index(line) + len(line) for line in lines]
    made = Candidate(
        texts=(text,), confidence=0.8**8, probabilities=(0.8,) * 8, token_ends=tuple(ends)
    )
    context = InfillContext(prefix="def f():\n    ", suffix="\n", language="python")
    assert texts(select([made], explicit=False, minConfidence=0.3, context=context)) == [text]


async def test_of_what_is_only_a_part_nothing_is_written_again():
    class Unsure(FakeCompleter):
        async def complete(self, request: InfillRequest, **_: Any) -> InfillResult:
            self.requests.append(request)
            made = Candidate(
                texts=("foo(argument, b)",),
                confidence=0.18,
                probabilities=(0.9, 0.2),
                token_ends=(12, 16),
            )
            return InfillResult(candidates=(made,), forwards=1, tokens=1, encoded_tokens=1, ms=1.0)

    completer = Unsure()
    context = InfillContext(prefix="y = ", suffix="\n", language="python")
    place = SyntaxPlace(SyntaxChecker(), context)
    completion = await complete_context(completer, context, place, settings(), explicit=False)
    assert completion.suggestions == ()
    assert len(completer.requests) == 1


def test_a_confidence_that_is_not_told_hides_nothing_and_ranks_last():
    made = candidates(a=math.nan, b=0.9)
    completion = select(made, explicit=False, minConfidence=0.8)
    assert texts(completion) == ["b", "a"]
    assert math.isnan(completion.suggestions[1].confidence)
    assert texts(select(candidates(a=math.nan), explicit=False, minConfidence=1)) == ["a"]
