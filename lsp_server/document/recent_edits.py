"""Where the user has edited of late, over all documents: a ring of places. Holds no text."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

RING_SIZE = 16
_SAME_PLACE_LINES = 12
"""An edit this close to the last one goes on with it."""


@dataclass(frozen=True, slots=True)
class _Place:
    document: str
    line: int


class RecentEdits:
    """The places of the last edits. They move along with what is written above them."""

    def __init__(self) -> None:
        self._ring: deque[_Place] = deque(maxlen=RING_SIZE)

    def note(self, document: str, first: int, last: int, new_lines: int) -> None:
        """Lines `first`..`last` (0-based) of `document` have been replaced by a text that ends
        `new_lines` lines after its beginning."""
        moved = new_lines - (last - first)
        shifted = (
            replace(place, line=max(first, place.line + moved))
            if place.document == document and place.line > first
            else place
            for place in self._ring
        )
        end = first + new_lines
        others = [
            place
            for place in shifted
            if place.document != document or abs(place.line - end) > _SAME_PLACE_LINES
        ]
        self._ring = deque((*others, _Place(document, end)), maxlen=RING_SIZE)

    def lines_of(self, document: str) -> tuple[int, ...]:
        """The edited lines of `document`, 0-based, the latest one last."""
        return tuple(place.line for place in self._ring if place.document == document)

    def forget(self, document: str) -> None:
        """Drop the places of a document that was closed, or changed as a whole."""
        others = [place for place in self._ring if place.document != document]
        self._ring = deque(others, maxlen=RING_SIZE)
