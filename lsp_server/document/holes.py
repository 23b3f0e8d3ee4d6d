"""The holes that a person leaves in a file to have them filled, and which of them go together.

    <FILL>                        anywhere, also several on a line
    ...                           alone on its line, or after a `:` at the end of one (Python)
    pass  # hole                  (Python)
    # TODO: what to do here       the line below it; the comment stays

A hole is what its marker replaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Marker = Literal["<FILL>", "...", "pass  # hole", "TODO"]
EXPLICIT: frozenset[Marker] = frozenset({"<FILL>", "pass  # hole"})
"""Markers that are written for no other reason than to have a hole filled."""

FILL_TAG: Marker = "<FILL>"
"""The one marker that is no code of its own in any language."""

_EOL = r"(?=\r?\n|\r|\Z)"
_TAG = re.compile(rf"(?P<hole>{FILL_TAG})")
_ELLIPSIS_LINE = re.compile(rf"(?:(?<=\n)|(?<=\r)|\A)[ \t]*(?P<hole>\.\.\.)[ \t]*{_EOL}")
_ELLIPSIS_BODY = re.compile(rf":[ \t]+(?P<hole>\.\.\.)[ \t]*{_EOL}")
_PASS = re.compile(rf"(?P<hole>\bpass[ \t]+#[ \t]*hole)[ \t]*{_EOL}")
_TODO = re.compile(
    rf"(?:(?<=\n)|(?<=\r)|\A)(?P<indent>[ \t]*)(?://|#|--|/\*|<!--)[ \t]*TODO\b[^\r\n]*{_EOL}"
)
_PATTERNS: tuple[tuple[Marker, re.Pattern[str], str | None], ...] = (
    (FILL_TAG, _TAG, None),
    ("...", _ELLIPSIS_LINE, None),
    ("...", _ELLIPSIS_BODY, "python"),
    ("pass  # hole", _PASS, "python"),
)
"""With the language that each is a marker in; None for all."""

CANVAS_SLOTS = 128
"""Slots of a diffusion model's canvas, which the holes of a request share with the text between
them. A backbone has no such limit, but holes further apart have little to do with each other."""
_SLOTS_PER_HOLE = 16
_CHARS_PER_SLOT = 3
"""Lower estimate of a token's length, so that a group seldom turns out too large."""


@dataclass(frozen=True, slots=True, order=True)
class Hole:
    """A place to fill: the span `start`..`end` of the text, in characters, is replaced by `lead`
    and the filling."""

    start: int
    end: int
    lead: str = ""
    """A line end and an indentation where the hole begins a line of its own."""
    marker: Marker = field(kw_only=True)
    marked_from: int = field(kw_only=True)
    """Where the text begins that says there is a hole; it goes on to `end`."""

    def moved(self, by: int) -> Hole:
        """The same hole `by` characters further on."""
        return replace(
            self, start=self.start + by, end=self.end + by, marked_from=self.marked_from + by
        )


def find_holes(text: str, language: str) -> list[Hole]:
    """The holes of a document, in order, none within another."""
    found = sorted(_marked(text, language))
    holes: list[Hole] = []
    for hole in found:
        if holes and hole.start < holes[-1].end:
            continue
        if holes and holes[-1].lead and not text[holes[-1].start : hole.start].strip():
            holes.pop()  # what the comment asks for has its marker already
        holes.append(hole)
    return holes


def _marked(text: str, language: str) -> Iterator[Hole]:
    for marker, pattern, of_language in _PATTERNS:
        if of_language not in (None, language) or marker.split()[0] not in text:
            continue  # to look for the word alone is far faster
        for match in pattern.finditer(text):
            start, end = match.span("hole")
            yield Hole(start, end, marker=marker, marked_from=start)
    for match in _TODO.finditer(text) if "TODO" in text else ():
        line_end = re.compile(r"\r\n|\n|\r").search(text, match.end())
        eol = line_end.group() if line_end else "\n"
        yield Hole(
            match.end(),
            match.end(),
            lead=eol + match["indent"],
            marker="TODO",
            marked_from=match.end("indent"),
        )


def grouped(holes: Sequence[Hole]) -> list[list[Hole]]:
    """The holes in groups that fit one canvas together, with the text between them."""
    groups: list[list[Hole]] = []
    room = 0
    for hole in holes:
        between = (hole.start - groups[-1][-1].end) // _CHARS_PER_SLOT if groups else 0
        needed = _SLOTS_PER_HOLE + between
        if not groups or needed > room:
            groups.append([])
            room, needed = CANVAS_SLOTS, _SLOTS_PER_HOLE
        groups[-1].append(hole)
        room -= needed
    return groups
