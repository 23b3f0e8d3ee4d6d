"""Filling on demand: here, in place of a selection, or every hole of a file. Knows no LSP types.

Holes of a file that are close to each other are one request, so that what fills one fits what
fills the others: a backbone fills them one after the other, each seeing those before it, a
diffusion model in one canvas. The others come in further requests, which see what was written. So
do those behind a hole that gets something else than the model wrote for it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lsp_server.ask.completion import (
    Completion,
    Reason,
    complete_context,
    infill_request,
    window_sizes,
)
from lsp_server.ask.session import EngineSource, InTime, Snapshot, reason_of, with_related
from lsp_server.ask.trigger import refusal
from lsp_server.check.confidence import told
from lsp_server.check.extent import Reach, reach
from lsp_server.check.indentation import indent_of
from lsp_server.check.postprocess import worth_inserting
from lsp_server.check.syntax import CHECKED_CHARS, SyntaxChecker, SyntaxPlace
from lsp_server.document.context import InfillContext, check_document, context_at, normalised
from lsp_server.document.holes import Hole, find_holes, grouped
from lsp_server.document.related import RelatedText
from lsp_server.settings import Settings
from model.api import Candidate, Completer, FrameListener, InvalidRequestError

_FILL_DOCUMENT = "#fill"
"""Goes behind a document's name, so that typing in it replaces no fill of it in the engine."""

Progress = Callable[[int, int], None]
"""Called with the number of holes done and the number of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Put `text` in place of `start`..`end`, in characters of the document that was filled."""

    start: int
    end: int
    text: str

    def moved(self, by: int) -> Edit:
        """The same edit `by` characters further on."""
        return replace(self, start=self.start + by, end=self.end + by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """One way to fill what was to be filled: edits that belong together, in document order."""

    edits: tuple[Edit, ...]
    confidence: float
    new_syntax_errors: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """The fillings, best first; when there are none, the reason."""

    fillings: tuple[Filling, ...] = ()
    reason: Reason | None = None
    completion: Completion | None = None
    """The last answer, for its bill."""


class Filler:
    """Fills documents of one editor window.

    Nothing but `asyncio.CancelledError` leaves its methods: what goes wrong becomes a reason.
    """

    def __init__(
        self,
        engine: EngineSource,
        settings: Settings,
        checker: SyntaxChecker,
        *,
        related: RelatedText | None = None,
        client: str = "",
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._checker = checker
        self._related = related or RelatedText()
        self._client = client

    async def span(
        self, snapshot: Snapshot, end: int, on_frame: FrameListener | None = None
    ) -> Filled:
        """Fill the place of `snapshot.offset`..`end`, in several ways. White space at the edges of
        what is there stays. `on_frame` gets every draft or canvas of the first way."""
        start, end = _without_edges(snapshot.text, snapshot.offset, end)
        try:
            reason = self._refusal(snapshot)
            if reason is not None:
                return Filled(reason=reason)
            completion = await complete_context(
                await self._completer(),
                await self._context(snapshot, start, end),
                self._place(snapshot, start, end),
                self._settings,
                explicit=True,
                document=snapshot.document + _FILL_DOCUMENT,
                client=self._client,
                on_frame=on_frame,
            )
        except Exception as error:
            return Filled(reason=reason_of(error, snapshot.language))
        fillings = tuple(
            Filling(
                edits=(Edit(start=start, end=end, text=suggestion.text),),
                confidence=suggestion.confidence,
                new_syntax_errors=suggestion.new_syntax_errors,
            )
            for suggestion in completion.suggestions
        )
        return Filled(fillings=fillings, reason=completion.reason, completion=completion)

    async def holes(
        self, snapshot: Snapshot, on_progress: Progress, within: tuple[int, int] | None = None
    ) -> Filled:
        """Fill every hole of the document, or of the part `within` these offsets, that the model
        has something for."""
        try:
            reason = self._refusal(snapshot)
            if reason is not None:
                return Filled(reason=reason)
            first, last = within or (0, len(snapshot.text))
            holes = [
                hole
                for hole in find_holes(snapshot.text, snapshot.language)
                if first <= hole.marked_from and hole.end <= last
            ]
            if not holes:
                return _nothing("there is no hole: mark one with <FILL>, ... or TODO")
            groups = grouped(holes)
            filled = _PartlyFilled(snapshot.text)
            while groups:
                on_progress(len(holes) - sum(map(len, groups)), len(holes))
                group = groups.pop(0)
                try:
                    filled, num_done = await self._fill_group(snapshot, group, filled)
                except InvalidRequestError:
                    if len(group) == 1:
                        raise
                    half = len(group) // 2
                    groups[:0] = [group[:half], group[half:]]
                else:
                    groups[:0] = [[hole] for hole in group[num_done:]]
            on_progress(len(holes), len(holes))
        except Exception as error:
            return Filled(reason=reason_of(error, snapshot.language))
        return _together(filled.written)

    async def _fill_group(
        self, snapshot: Snapshot, group: Sequence[Hole], filled: _PartlyFilled
    ) -> tuple[_PartlyFilled, int]:
        """Fill a group's holes at once, in a document in which those above are `filled`, and tell
        how many of them are done with.

        Raises `CompletionError`.
        """
        here = replace(snapshot, text=filled.text)
        moved = [hole.moved(filled.shift) for hole in group]
        request = infill_request(
            await self._group_context(here, moved),
            self._settings,
            explicit=True,
            document=snapshot.document + _FILL_DOCUMENT,
            client=self._client,
            wanted=await asyncio.to_thread(self._reach, here, moved),
        )
        result = await (await self._completer()).complete(request)
        tried = [
            await asyncio.to_thread(self._with_candidate, snapshot, group, filled, candidate)
            for candidate in result.candidates
        ]
        return max(tried, key=lambda one: len(one[0].written), default=(filled, len(group)))

    def _reach(self, snapshot: Snapshot, holes: Sequence[Hole]) -> Reach:
        """How far the widest of the holes may reach: a request says it of all of them."""
        places = [self._place(snapshot, h.start, h.end, lead=h.lead) for h in holes]
        found = [reach(place, explicit=True) for place in places]
        return Reach(
            max_lines=_widest(max, [one.max_lines for one in found]),
            min_indent=_widest(min, [one.min_indent for one in found]),
        )

    def _with_candidate(
        self,
        snapshot: Snapshot,
        group: Sequence[Hole],
        filled: _PartlyFilled,
        candidate: Candidate,
    ) -> tuple[_PartlyFilled, int]:
        """What of a candidate is worth writing, in strict mode what breaks nothing, and how many
        holes that is: up to the first that gets something else than the model went on from."""
        check = self._settings.syntax_check
        for index, (hole, made) in enumerate(zip(group, candidate.texts, strict=True)):
            moved = hole.moved(filled.shift)
            here = replace(snapshot, text=filled.text)
            place = self._place(here, moved.start, moved.end, lead=hole.lead)
            is_begun = bool(place.context.prefix.rpartition("\n")[2].strip())
            text = worth_inserting(
                made if is_begun else made.lstrip(),  # else the line is indented already
                place,
                explicit=True,
                finished=candidate.finished,
            )
            errors = place.new_errors((text,)) if text and check != "off" else None
            if errors and check == "strict":
                text = ""
            if text:
                new = hole.lead + text.replace("\n", place.context.eol)
                filled = filled.having(hole, new, candidate.confidence, errors)
            if text.strip() != made.strip():
                return filled, index + 1
        return filled, len(group)

    def _refusal(self, snapshot: Snapshot) -> Reason | None:
        """Raises `DocumentError`."""
        reason = refusal(
            snapshot.path,
            snapshot.language,
            self._settings,
            name=snapshot.document,
            explicit=True,
        )
        if reason is not None:
            return Reason(kind="inactive", message=reason)
        check_document(snapshot.text, name="this document", max_kb=self._settings.max_file_kb)
        return None

    async def _completer(self) -> Completer:
        """Raises `EngineUnavailableError`."""
        started = time.monotonic()
        await self._engine.start()
        wait_s = self._settings.deadline_ms.manual / 1000
        return InTime(await self._engine.completer(started + wait_s - time.monotonic()))

    async def _context(self, snapshot: Snapshot, start: int, end: int) -> InfillContext:
        context = context_at(
            snapshot.text,
            start,
            end,
            language=snapshot.language,
            **window_sizes(self._settings),
        )
        return await with_related(context, snapshot, self._related, self._settings)

    async def _group_context(self, snapshot: Snapshot, holes: Sequence[Hole]) -> InfillContext:
        context = await self._context(snapshot, holes[0].start, holes[-1].end)
        between = tuple(
            snapshot.text[hole.end : following.start] + following.lead
            for hole, following in pairwise(holes)
        )
        return replace(
            context,
            prefix=context.prefix + normalised(holes[0].lead),
            between=tuple(map(normalised, between)),
        )

    def _place(self, snapshot: Snapshot, start: int, end: int, *, lead: str = "") -> SyntaxPlace:
        context = context_at(
            snapshot.text,
            start,
            end,
            language=snapshot.language,
            prefix_chars=CHECKED_CHARS,
            suffix_chars=CHECKED_CHARS,
        )
        return SyntaxPlace(
            self._checker, replace(context, prefix=context.prefix + normalised(lead))
        )


def _without_edges(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space at its edges; one of blank lines without the indentation of
    the first and the line end of the last, which editors select with a line."""
    inside = text[start:end]
    if inside.strip():
        start += len(inside) - len(inside.lstrip())
        return start, end - (len(inside) - len(inside.rstrip()))
    line_ends = list(re.finditer(r"\r\n|\n|\r", inside))
    if line_ends:
        end = start + line_ends[-1].start()
    line_start = max(text.rfind("\n", 0, start), text.rfind("\r", 0, start)) + 1
    if not text[line_start:start].strip():
        start += len(indent_of(text[start:end]))
    return start, end


@dataclass(frozen=True, slots=True)
class _Written:
    edit: Edit
    confidence: float
    new_syntax_errors: int | None


@dataclass(frozen=True, slots=True)
class _PartlyFilled:
    """A document in which some holes are filled, from the top."""

    text: str
    shift: int = 0
    """How much further down that has moved what is below."""
    written: tuple[_Written, ...] = ()

    def having(self, hole: Hole, text: str, confidence: float, errors: int | None) -> _PartlyFilled:
        """The same with `text` in one more hole, which is of the document as it was."""
        start, end = hole.start + self.shift, hole.end + self.shift
        edit = Edit(start=hole.start, end=hole.end, text=text)
        return _PartlyFilled(
            self.text[:start] + text + self.text[end:],
            self.shift + len(text) - (end - start),
            (*self.written, _Written(edit, confidence, errors)),
        )


def _widest(choose: Callable[[list[int]], int], limits: Sequence[int | None]) -> int | None:
    """The limit that holds for all; none where one of them has none."""
    known = [limit for limit in limits if limit is not None]
    return choose(known) if len(known) == len(limits) else None


def _together(written: Sequence[_Written]) -> Filled:
    if not written:
        return _nothing("the model has nothing to write into these holes")
    counted = [one.new_syntax_errors for one in written if one.new_syntax_errors is not None]
    filling = Filling(
        edits=tuple(one.edit for one in written),
        # Not known of one is not known of all.
        confidence=min((one.confidence for one in written), key=lambda c: told(c) or 0.0),
        new_syntax_errors=sum(counted) if counted else None,
    )
    return Filled(fillings=(filling,))


def _nothing(message: str) -> Filled:
    return Filled(reason=Reason(kind="normal", message=message))
