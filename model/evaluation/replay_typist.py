"""The person at the keyboard of a replay: what they type, when they accept, what that saves.

Knows no language server: `Ask` is how a suggestion is had for a place. Offsets count characters
into a region's `truth`, the text that the person is going to type.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rapidfuzz import fuzz

from model.evaluation.report import percentile, share

REGION_LINES = (2, 25)
"""Fewest and most lines of a region."""
RUN_LINES = (2, 8)
"""Fewest and most lines of a region that is no block."""
MIN_REGION_CHARS = 24
MAX_LINE_CHARS = 200
"""Nobody types a longer line by hand."""
AT_END_EVERY = 4
"""Every so manieth region has nothing below it, as when writing on at a file's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A place in a real file whose text is taken out and typed again."""

    path: Path
    language: str
    """LSP language id."""
    head: str
    """The document before it; ends with the indentation of the region's first line."""
    truth: str
    """What the person types. With nothing below, it goes on to the end of the file, so that a
    suggestion which runs past the region can be right."""
    length: int
    """The region's part of `truth`, in characters."""
    tail: str
    """The document after it; begins with a line end, or is empty."""

    @property
    def at_end(self) -> bool:
        """Whether the document has nothing below the region."""
        return not self.tail


# --- Regions --------------------------------------------------------------------------------

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
_CLOSES_BLOCK = re.compile(r"\s*([)}\]]|end\b)")


def pick_regions(
    path: Path, text: str, language: str, *, number: int, rng: random.Random
) -> list[Region]:
    """Up to `number` regions of a file, by turns an indented block with its first line and a run
    of whole lines, none of which overlap. The same `rng` picks the same ones.
    """
    lines = _LINE.findall(text)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    taken: set[int] = set()
    regions: list[Region] = []
    for first in rng.sample(range(len(lines)), len(lines)):
        if len(regions) == number:
            break
        wants_block = len(regions) % 2 == 0
        last = _block_end(lines, first) if wants_block else first + rng.randint(*RUN_LINES) - 1
        if last is None or not _can_be_typed(lines, first, last):
            continue
        if taken.isdisjoint(range(first, last + 1)):
            taken.update(range(first, last + 1))
            begin = starts[first] + _indentation(lines[first])
            end = starts[last] + len(lines[last].rstrip("\r\n"))
            at_end = rng.randrange(AT_END_EVERY) == 0
            regions.append(
                Region(
                    path=path,
                    language=language,
                    head=text[:begin],
                    truth=text[begin:] if at_end else text[begin:end],
                    length=end - begin,
                    tail="" if at_end else text[end:],
                )
            )
    return regions


def _block_end(lines: Sequence[str], first: int) -> int | None:
    """The last line of the block that line `first` begins, by indentation; None if it begins none.

    A line that only closes the block belongs to it.
    """
    if not lines[first].strip():
        return None
    outer, last = _indentation(lines[first]), first
    for index in range(first + 1, len(lines)):
        line = lines[index]
        if line.strip() and _indentation(line) <= outer:
            if _indentation(line) == outer and _CLOSES_BLOCK.match(line) and last > first:
                last = index
            break
        if line.strip():
            last = index
    return last if last > first else None


def _can_be_typed(lines: Sequence[str], first: int, last: int) -> bool:
    fewest, most = REGION_LINES
    region = lines[first : last + 1]
    return (
        len(region) == last + 1 - first
        and fewest <= len(region) <= most
        and bool(region[0].strip() and region[-1].strip())
        and max(map(len, region)) <= MAX_LINE_CHARS
        and sum(len(line.strip()) for line in region) >= MIN_REGION_CHARS
    )


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


# --- Keystrokes -----------------------------------------------------------------------------

_KEYSTROKE = re.compile(r"(?:\r\n|\n|\r)[ \t]*|.", re.DOTALL)
_BLANKS = re.compile(r"[ \t]+")


def keystroke_end(truth: str, offset: int) -> int:
    """Where the keystroke ends that types `truth` from `offset` on.

    One character; or Enter, which an editor follows with the next line's indentation; or Tab,
    for what is left of an indentation that a suggestion has begun.
    """
    rest = _rest_of_indentation(truth, offset)
    if rest is not None:
        return rest.end()
    keystroke = _KEYSTROKE.match(truth, offset)
    assert keystroke is not None, "nothing is left to type"
    return keystroke.end()


def _rest_of_indentation(truth: str, offset: int) -> re.Match[str] | None:
    blanks = _BLANKS.match(truth, offset)
    line_end = max(truth.rfind("\n", 0, offset), truth.rfind("\r", 0, offset))
    if blanks and line_end >= 0 and not truth[line_end + 1 : offset].strip(" \t"):
        return blanks
    return None


def keystroke_starts(truth: str, start: int, end: int) -> list[int]:
    """The offset of every keystroke that it takes to type `truth[start:end]`."""
    starts: list[int] = []
    while start < end:
        starts.append(start)
        start = keystroke_end(truth, start)
    return starts


# --- Typing ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one request for a suggestion came to."""

    text: str | None = None
    """The best suggestion; None for nothing."""
    confidence: float | None = None
    """Of the suggestion, 0..1; None where the server does not tell."""
    reason: str = ""
    """Why there is nothing."""
    ms: float | None = None
    """From the request to the answer; None when there was none to wait for."""
    engine_ms: float | None = None
    """The engine's share of that; None when it was not asked."""


TYPED_ON = "the person typed on before the answer came"

Ask = Callable[[int], Awaitable[Answer]]
"""Put the cursor to an offset of the region, with all before it typed, and ask there."""


@dataclass(slots=True, kw_only=True)
class Shown:
    """One distinct suggestion. It counts once, however long it stays while it is typed into."""

    text: str
    confidence: float | None
    right: bool
    """Whether the person was going to type all of it."""
    first_line_right: bool
    similarity: float
    """Normalised edit similarity (indel) to as many characters of the true text, 0..1."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A suggestion taken over, or its leading words."""

    kind: Literal["whole", "words"]
    length: int
    """In characters."""
    presses: int
    """Keys that it took."""


@dataclass(slots=True)
class RegionLog:
    """What happened while one region was typed."""

    region: Region
    typed: int = 0
    """Characters of the truth that stand in the document."""
    keystrokes: int = 0
    """What typing these characters takes without help."""
    pressed: int = 0
    """What it took."""
    saved_by_words: int = 0
    """The part of the difference that comes from taking over leading words only."""
    answers: list[Answer] = field(default_factory=list)
    shown: dict[str, Shown] = field(default_factory=dict)
    """By the text that the document would have, from the region's start."""
    accepted: list[Acceptance] = field(default_factory=list)


async def type_region(log: RegionLog, ask: Ask, *, by_words: bool = False) -> None:
    """Type the log's region, asking before every keystroke, and accept a suggestion iff all of it
    is what comes next. `by_words`: failing that, accept those leading words that are.

    The log is kept up to date, so that it holds the beginning if this is cancelled.
    """
    region = log.region
    while log.typed < region.length:
        answer = await ask(log.typed)
        log.answers.append(answer)
        accepted = None
        if answer.text:
            note_shown(log, answer.text, answer.confidence)
            accepted = acceptance(region.truth, log.typed, answer.text, by_words=by_words)
        _type_on(log, accepted)


def _type_on(log: RegionLog, accepted: Acceptance | None) -> None:
    truth, start = log.region.truth, log.typed
    end = keystroke_end(truth, start) if accepted is None else start + accepted.length
    # Without help, the line end would have brought all of an indentation that we are inside of.
    counted_already = _rest_of_indentation(truth, start) is not None
    keystrokes = len(keystroke_starts(truth, start, end)) - counted_already
    presses = 1 if accepted is None else accepted.presses
    if accepted is not None:
        log.accepted.append(accepted)
        if accepted.kind == "words":
            log.saved_by_words += keystrokes - presses
    log.keystrokes += keystrokes
    log.pressed += presses
    log.typed = end


def note_shown(log: RegionLog, text: str, confidence: float | None) -> None:
    """Count a suggestion at the log's cursor, unless it is one that has been on and stays on."""
    truth, start = log.region.truth, log.typed
    first_line, line_end, _ = text.partition("\n")
    log.shown.setdefault(
        truth[:start] + text,
        Shown(
            text=text,
            confidence=confidence,
            right=truth.startswith(text, start),
            first_line_right=truth.startswith(first_line + line_end, start),
            similarity=fuzz.ratio(text, truth[start : start + len(text)]) / 100,
        ),
    )


_WORD = re.compile(r"\s*(?:\w+|[^\w\s]+)")


def acceptance(truth: str, offset: int, text: str, *, by_words: bool) -> Acceptance | None:
    """How the person takes over a suggestion at `offset`; None when they do not.

    All of it with one key if it is right. `by_words`: else the leading words that are right, one
    key each, if that saves keys.
    """
    if truth.startswith(text, offset):
        return Acceptance("whole", len(text), 1)
    length = presses = 0
    if by_words:
        for word in _WORD.finditer(text):
            if not truth.startswith(word.group(), offset + length):
                break
            length, presses = word.end(), presses + 1
    if len(keystroke_starts(truth, offset, offset + length)) <= presses:
        return None
    return Acceptance("words", length, presses)


# --- Figures --------------------------------------------------------------------------------


def summarise(logs: Iterable[RegionLog]) -> dict[str, object]:
    """The figures of some regions; a share of nothing is None."""
    logs = list(logs)
    answers = [answer for log in logs for answer in log.answers]
    shown = [suggestion for log in logs for suggestion in log.shown.values()]
    accepted = [taken for log in logs for taken in log.accepted]
    keystrokes = sum(log.keystrokes for log in logs)
    saved = keystrokes - sum(log.pressed for log in logs)
    times = [answer.ms for answer in answers if answer.ms is not None]
    engine = [answer.engine_ms for answer in answers if answer.engine_ms is not None]
    return {
        "keystrokes_saved": share(saved, keystrokes),
        "keystrokes_saved_by_words": share(sum(log.saved_by_words for log in logs), keystrokes),
        "shown": share(sum(answer.text is not None for answer in answers), len(answers)),
        "precision": share(sum(s.right for s in shown), len(shown)),
        "first_line_precision": share(sum(s.first_line_right for s in shown), len(shown)),
        "edit_similarity": share(sum(s.similarity for s in shown), len(shown)),
        "ms_p50": percentile(times, 50),
        "ms_p95": percentile(times, 95),
        "engine_ms_p50": percentile(engine, 50),
        "engine_ms_p95": percentile(engine, 95),
        "regions": len(logs),
        "keystrokes": keystrokes,
        "requests": len(answers),
        "superseded": sum(answer.reason == TYPED_ON for answer in answers),
        "suggestions": len(shown),
        "accepted": sum(taken.kind == "whole" for taken in accepted),
        "accepted_words": sum(taken.presses for taken in accepted if taken.kind == "words"),
        "accepted_chars": sum(taken.length for taken in accepted),
        "nothing_shown": dict(Counter(a.reason for a in answers if a.text is None).most_common()),
    }
