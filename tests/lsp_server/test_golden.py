"""What is shown of what a model wrote, case by case: the files under `golden/` say how.

    == a claim about the case [options]
    the document, and in it ├what the model wrote┤ at the cursor
    --
    the document, and in it ├what is shown┤ of that ("├┤": nothing)

The language is the file's name. Options: `manual` (a person asked), `unfinished` (the model was
cut off), `min=0.5` (`minConfidence`), `warn` (`syntaxCheck`). A number such as ‹0.9› ends a token
of the model's text and is its probability; without any, the model is sure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lsp_server.ask.completion import select_suggestions
from lsp_server.check.extent import reach
from lsp_server.check.syntax import SyntaxChecker, SyntaxPlace
from lsp_server.document.context import InfillContext
from lsp_server.settings import parse_settings
from model.api import Candidate
from model.backbone.ending import Ending

GOLDEN = Path(__file__).parent / "golden"
_HEAD = re.compile(r"^== (?P<claim>.*?)(?: \[(?P<options>[^\]]*)\])?$", re.MULTILINE)
_PROBABILITY = re.compile(r"‹([\d.]+)›")


@dataclass(frozen=True, slots=True)
class Case:
    language: str
    claim: str
    options: tuple[str, ...]
    prefix: str
    written: str
    suffix: str
    shown: str


def _cases(path: Path) -> Iterator[Case]:
    _, *parts = _HEAD.split(path.read_text("utf-8"))
    for claim, options, body in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
        before, separator, after = body.strip("\n").partition("\n--\n")
        assert separator, f"{path.name}: {claim} has no line --"
        prefix, written, suffix = _marked(before)
        expected_prefix, shown, expected_suffix = _marked(after)
        assert (prefix, suffix) == (expected_prefix, expected_suffix), f"{path.name}: {claim}"
        yield Case(
            path.stem, claim, tuple((options or "").split()), prefix, written, suffix + "\n", shown
        )


def _marked(text: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"([^├┤]*)├([^├┤]*)┤([^├┤]*)", text)
    assert match, f"exactly one ├…┤ is needed in {text!r}"
    return match[1], match[2], match[3]


def _candidate(written: str, *, finished: bool) -> Candidate:
    pieces = _PROBABILITY.split(written)
    if len(pieces) == 1:
        return Candidate(texts=(written,), confidence=1.0, finished=finished)
    text, ends, probabilities = "", list[int](), list[float]()
    for piece, probability in zip(pieces[0::2], [*pieces[1::2], "1"], strict=True):
        if piece:
            text += piece
            ends.append(len(text))
            probabilities.append(float(probability))
    return Candidate(
        texts=(text,),
        confidence=math.prod(probabilities),
        finished=finished,
        probabilities=(*probabilities, 1.0),
        token_ends=tuple(ends),
    )


CASES = [case for path in sorted(GOLDEN.glob("*.txt")) for case in _cases(path)]


@pytest.mark.parametrize("case", CASES, ids=[f"{c.language}: {c.claim}" for c in CASES])
def test_golden(case: Case):
    options = dict(option.partition("=")[::2] for option in case.options)
    settings, problems = parse_settings(
        {
            "minConfidence": float(options.get("min", 0.1)),
            "syntaxCheck": "warn" if "warn" in options else "strict",
        }
    )
    assert problems == ()
    context = InfillContext(prefix=case.prefix, suffix=case.suffix, language=case.language)
    completion = select_suggestions(
        [_candidate(case.written, finished="unfinished" not in options)],
        SyntaxPlace(SyntaxChecker(), context),
        settings,
        explicit="manual" in options,
    )
    shown = completion.suggestions[0].text if completion.suggestions else ""
    assert shown == case.shown, completion.reason


@pytest.mark.parametrize("case", CASES, ids=[f"{c.language}: {c.claim}" for c in CASES])
def test_what_is_asked_for_is_never_less_than_what_is_shown(case: Case):
    context = InfillContext(prefix=case.prefix, suffix=case.suffix, language=case.language)
    place = SyntaxPlace(SyntaxChecker(), context)
    wanted = reach(place, explicit="manual" in case.options)
    written = _PROBABILITY.sub("", case.written)
    cut = Ending("", wanted.max_lines, wanted.min_indent).cut(written + "\n")
    assert len("".join(written[:cut].split())) >= len("".join(case.shown.split()))


def test_there_are_cases_of_many_languages_and_no_two_of_the_same_name():
    assert len({case.language for case in CASES}) >= 8
    assert len(CASES) >= 150
    assert len({(case.language, case.claim) for case in CASES}) == len(CASES)
