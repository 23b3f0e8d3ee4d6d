"""One round from a context to the completions worth showing. Knows no LSP types.

context -> request, for as much as could be shown (`extent`) -> candidates -> shortened to what is
worth inserting (`postprocess`) and to what the model is sure of (`confidence`), repaired where they
break the syntax (`repair`), ranked.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from lsp_server.ask.repair import Repair
from lsp_server.check.confidence import confidence_of, is_sure, told, worthwhile_lengths
from lsp_server.check.extent import Reach, reach
from lsp_server.check.postprocess import worth_inserting
from lsp_server.check.syntax import SyntaxPlace
from lsp_server.document.context import InfillContext
from lsp_server.settings import Settings
from model.api import Candidate, Completer, FrameListener, InfillRequest, InfillResult

_MAX_PARTS = 4
"""Parts of a text whose syntax is checked, until one has no error."""

CHARS_PER_TOKEN = 4
"""Upper estimate for source code, so that the window holds at least the tokens asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A completion that passed every check, in the document's own line endings."""

    text: str
    """What to insert at the cursor (in the first hole)."""
    confidence: float
    """The model's probability of the text, 0..1 (`confidence_of`); NaN where it is not known."""
    new_syntax_errors: int | None
    """Syntax errors it adds to the document; None when unchecked."""
    texts: tuple[str, ...]
    """One text a hole, `text` first."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Stays while the user types into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why there is nothing to show, in a few words for a status bar."""

    kind: Literal["normal", "warning", "error", "inactive"]
    message: str


SUPERSEDED = Reason(kind="normal", message="a newer request took this one's place")
"""Not worth showing: the newer request brings its own reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntaxTally:
    """How many candidates of an answer broke the syntax, and for how many that was mended."""

    broken: int
    repaired: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The suggestions, best first; when there are none, the reason."""

    suggestions: tuple[Suggestion, ...] = ()
    reason: Reason | None = None
    result: InfillResult | None = None
    """What the engine answered; None when it was not asked."""
    syntax: SyntaxTally | None = None
    """What the syntax check met with; None where nothing came that far."""


async def complete_context(
    completer: Completer,
    context: InfillContext,
    place: SyntaxPlace,
    settings: Settings,
    *,
    explicit: bool,
    document: str = "",
    client: str = "",
    typed: str = "",
    draft: str = "",
    deadline_ms: float | None = None,
    on_frame: FrameListener | None = None,
) -> Completion:
    """Fill the holes of `context` and keep the candidates worth showing at `place`, which is the
    same place with far more around it.

    `explicit` says that a person asked. `typed` is how the first hole is known to begin: `context`
    is of the document without it, `place` with it. `draft` is what may well come behind that.
    `deadline_ms` of None takes the setting's.
    Raises `CompletionError` when the completer does; cancelling stops the engine.
    """
    started = time.monotonic()
    # Parsing takes milliseconds in a large file: not on the loop, which must hear cancellations.
    wanted = await asyncio.to_thread(reach, place, explicit=explicit)
    request = infill_request(
        context,
        settings,
        explicit=explicit,
        document=document,
        client=client,
        wanted=wanted,
    )
    request = replace(request, typed=typed, draft=draft)
    if deadline_ms is not None:
        request = replace(request, deadline_ms=deadline_ms)
    result = await completer.complete(request, on_frame=on_frame)
    candidates = [_untyped(candidate, typed) for candidate in result.candidates]
    drafts = await asyncio.to_thread(
        draft_suggestions, candidates, place, settings, explicit=explicit
    )
    if isinstance(drafts, Reason):
        return Completion(reason=drafts, result=result)

    def check(candidate: Candidate) -> Draft | None:
        return _draft_of(candidate, place, settings, explicit=explicit)

    repair = Repair(
        completer, request, place, check, rounds=settings.max_repair_rounds, started=started
    )
    repaired = [await _repaired(draft, repair) for draft in drafts]
    ranked = _ranked(repaired, place.context.eol, settings)
    # Some engines make more than they are asked for.
    return replace(ranked, suggestions=ranked.suggestions[: request.candidates], result=result)


async def _repaired(draft: Draft, repair: Repair) -> Draft:
    """The draft without its syntax errors, if the engine finds a way to say it without them."""
    if not draft.new_syntax_errors or len(draft.candidate.texts) > 1 or draft.is_part:
        return draft  # of a part it is known how the model goes on, and that it is not sure of it
    better = await repair.of(draft)
    return draft if better is None else replace(better, was_repaired=True)


def _untyped(candidate: Candidate, typed: str) -> Candidate:
    """The candidate without what the request said that it begins with."""
    if not typed:
        return candidate
    first, *others = candidate.texts
    return replace(
        candidate,
        texts=(first[len(typed) :], *others),
        token_ends=tuple(end - len(typed) for end in candidate.token_ends),
    )


def window_sizes(settings: Settings) -> dict[str, int]:
    """How much `context_at` is to take: what the model reads, and what lies beyond."""
    sizes = settings.context
    return {
        "prefix_chars": sizes.prefix_tokens * CHARS_PER_TOKEN,
        "suffix_chars": sizes.suffix_tokens * CHARS_PER_TOKEN,
        "far_chars": sizes.far_chars,
    }


def infill_request(
    context: InfillContext,
    settings: Settings,
    *,
    explicit: bool,
    document: str,
    client: str,
    wanted: Reach | None = None,
) -> InfillRequest:
    """State the context and the settings as a request to the engine; nothing is wanted beyond
    `wanted`.

    Raises `InvalidRequestError` when a setting is out of the engine's range.
    """
    wanted = wanted or Reach()
    # Confidence in the whole is confidence in the line where there is to be only one. That of more
    # falls with their number: lines are then judged one by one, once they are there.
    least = _least_confidence(settings, explicit=explicit) if wanted.max_lines == 1 else 0.0
    return InfillRequest(
        prefix=context.related + context.prefix,
        suffix=context.suffix,
        between=context.between,
        before=context.before,
        after=context.after,
        prefix_tokens=settings.context.prefix_tokens,
        suffix_tokens=settings.context.suffix_tokens,
        language=context.language,
        document=document,
        client=client,
        priority="manual" if explicit else "auto",
        max_new_tokens=settings.max_new_tokens,
        candidates=settings.candidates.manual if explicit else settings.candidates.auto,
        steps=settings.steps,
        deadline_ms=settings.deadline_ms.manual if explicit else settings.deadline_ms.auto,
        max_lines=wanted.max_lines,
        min_indent=wanted.min_indent,
        min_confidence=least,
    )


def _least_confidence(settings: Settings, *, explicit: bool) -> float:
    """Who asks is shown what there is; what comes up by itself has to be worth the interruption."""
    return 0.0 if explicit else settings.min_confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is left of a candidate, its syntax checked; lines end in `\\n`."""

    candidate: Candidate
    texts: tuple[str, ...]
    """One a hole."""
    confidence: float
    new_syntax_errors: int | None
    is_part: bool = False
    """Whether the text that the model meant goes on, as far as it would be worth inserting."""
    was_repaired: bool = False


def select_suggestions(
    candidates: Iterable[Candidate], place: SyntaxPlace, settings: Settings, *, explicit: bool
) -> Completion:
    """Shorten, check and rank what the model made; say why when nothing is left."""
    drafts = draft_suggestions(candidates, place, settings, explicit=explicit)
    if isinstance(drafts, Reason):
        return Completion(reason=drafts)
    return _ranked(drafts, place.context.eol, settings)


def draft_suggestions(
    candidates: Iterable[Candidate], place: SyntaxPlace, settings: Settings, *, explicit: bool
) -> list[Draft] | Reason:
    """Shorten and check what the model made; the reason where nothing is left."""
    shortened: dict[str, Candidate] = {}
    for candidate in candidates:
        text = worth_inserting(
            candidate.text, place, explicit=explicit, finished=candidate.finished
        )
        # Of candidates that became equal by shortening, the first (the greedy one) stays.
        if text:
            shortened.setdefault(text, candidate)
    if not shortened:
        return _because("the model has nothing to add here")

    drafts: dict[str, Draft] = {}
    for text, candidate in shortened.items():
        best = _best_part(text, candidate, place, settings, explicit=explicit)
        if best is not None:
            drafts.setdefault(best.texts[0], best)
    if not drafts:
        return _because(f"no candidate reached the confidence of {settings.min_confidence:g}")
    return list(drafts.values())


def _draft_of(
    candidate: Candidate, place: SyntaxPlace, settings: Settings, *, explicit: bool
) -> Draft | None:
    """What is left of one candidate; None for nothing."""
    text = worth_inserting(candidate.text, place, explicit=explicit, finished=candidate.finished)
    return _best_part(text, candidate, place, settings, explicit=explicit) if text else None


def _best_part(
    text: str, candidate: Candidate, place: SyntaxPlace, settings: Settings, *, explicit: bool
) -> Draft | None:
    """As much of a shortened text as the model is sure enough of; None for nothing."""
    least = _least_confidence(settings, explicit=explicit)
    parts = _sure_parts(candidate, text, place.context, least)
    of_parts = (
        replace(_draft(part, candidate, place, settings), is_part=part != text.rstrip())
        for part in parts
    )
    # A part may break off inside a bracket that the whole closes.
    drafts = list[Draft]()
    for draft in of_parts:
        if not draft.new_syntax_errors:
            return draft
        drafts.append(draft)
    return drafts[0] if drafts else None


def _sure_parts(
    candidate: Candidate, text: str, context: InfillContext, least: float
) -> tuple[str, ...]:
    """As much of `text` as is worth showing, being sure enough, the best first; none for
    nothing."""
    # A text without the space that the engine stopped at breaks off there all the same.
    breaks_off = not candidate.finished and candidate.text.rstrip(" \t") == text
    length = len(candidate.text) if breaks_off else len(text)
    whole = (text,) if is_sure(candidate, length, least) else ()
    following = context.between[0] if context.between else context.suffix
    if following.partition("\n")[0].strip() or not candidate.text.startswith(text):
        return whole  # with a part of it, what stays on the line would no longer join on
    if not least or not candidate.token_ends:
        return whole
    lengths = worthwhile_lengths(candidate, len(text), least, may_be_whole=bool(whole))
    best, *others = [part for n in lengths if (part := text[:n].rstrip())] or ("",)
    parts = (best, *whole, *others)
    return tuple(dict.fromkeys(filter(None, parts)))[:_MAX_PARTS]


def _draft(text: str, candidate: Candidate, place: SyntaxPlace, settings: Settings) -> Draft:
    """A draft of `text`, with its syntax errors counted unless that is switched off."""
    texts = (text, *candidate.texts[1:])
    return Draft(
        candidate=candidate,
        texts=texts,
        confidence=confidence_of(candidate, len(text)),
        new_syntax_errors=place.new_errors(texts) if settings.syntax_check != "off" else None,
    )


def _ranked(drafts: list[Draft], eol: str, settings: Settings) -> Completion:
    """The suggestions that the syntax check leaves, best first, and what it met with."""
    syntax = SyntaxTally(
        broken=sum(bool(draft.new_syntax_errors) or draft.was_repaired for draft in drafts),
        repaired=sum(draft.was_repaired and not draft.new_syntax_errors for draft in drafts),
    )
    if settings.syntax_check == "strict":
        drafts = [draft for draft in drafts if not draft.new_syntax_errors]
        if not drafts:
            reason = _because("no candidate without new syntax errors")
            return Completion(reason=reason, syntax=syntax)
    distinct = {draft.texts: draft for draft in reversed(drafts)}  # two may be repaired alike
    drafts = [draft for draft in drafts if distinct[draft.texts] is draft]
    # The sort is stable: among equals, the engine's order stays.
    drafts.sort(key=lambda draft: (bool(draft.new_syntax_errors), -_worth(draft)))
    return Completion(suggestions=tuple(_suggestion(draft, eol) for draft in drafts), syntax=syntax)


def _worth(draft: Draft) -> float:
    """How a draft compares with the others of its answer, which have all a score or all none."""
    score = draft.candidate.score
    return (told(draft.confidence) or 0.0) if score is None else score


def _suggestion(draft: Draft, eol: str) -> Suggestion:
    texts = tuple(text.replace("\n", eol) for text in draft.texts)
    return Suggestion(
        text=texts[0],
        confidence=draft.confidence,
        new_syntax_errors=draft.new_syntax_errors,
        texts=texts,
    )


def _because(message: str) -> Reason:
    return Reason(kind="normal", message=message)
