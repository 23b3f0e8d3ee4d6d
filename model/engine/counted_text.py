"""A stretch of the document, in which `n_grams` looks up what follows. Imports no torch."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

MAX_OCCURRENCES = 512
"""Occurrences of a context that are looked at in a text, those nearest to the hole. A comma has
thousands, and all of them say the same."""


class CountedText:
    """A stretch of the document, for looking up what follows a context in it."""

    def __init__(
        self, ids: Sequence[int], token_bytes: Sequence[bytes], *, precedes_hole: bool
    ) -> None:
        """`ids` are its tokens, in the document's order."""
        pieces = [token_bytes[i] for i in ids]
        self._bytes = b"".join(pieces)
        # Arrays take an eighth of the memory of lists: texts of many documents are kept.
        self._ids = array("I", ids)
        self._starts = array("I", accumulate(map(len, pieces), initial=0))
        self.precedes_hole = precedes_hole

    def occurrences(self, context: bytes) -> Iterator[int]:
        """Where `context`, beginning with a token, ends: byte offsets, the nearest first."""
        start = self._bytes.rfind(context) if self.precedes_hole else self._bytes.find(context)
        for _ in range(MAX_OCCURRENCES):
            if start < 0:
                return
            if self._starts[bisect_left(self._starts, start)] == start:
                yield start + len(context)
            if self.precedes_hole:
                start = self._bytes.rfind(context, 0, start + len(context) - 1)
            else:
                start = self._bytes.find(context, start + 1)

    def ends_with(self, context: bytes, end: int) -> bool:
        """Whether `context` stands before the byte `end`."""
        return self._bytes.endswith(context, 0, end)

    def token_at(self, offset: int) -> tuple[int | None, bytes]:
        """The token that begins at `offset`; where that is inside a token, None and the rest of
        it. The rest is empty at the text's end."""
        index = bisect_left(self._starts, offset)
        if self._starts[index] != offset:
            return None, self._bytes[offset : self._starts[index]]
        if index == len(self._ids):
            return None, b""
        return self._ids[index], b""
