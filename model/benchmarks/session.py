"""An editing session made from real files: what a person does in an editor, request by request.

Deterministic: the same files and seed give the same session. Two files are worked on by turns. In
each, a region is taken out and typed again key by key, with typos that are erased; now and then the
person takes over the rest of a line at once, as from a suggestion that is right; after each line
they may look elsewhere and come back, or something below the cursor changes (another cursor, a
rename, a formatter); after a region a block is pasted. Every event ends in the request that an
editor would make there.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from model.evaluation.sources import SourceText

EventKind = Literal["open", "type", "erase", "accept", "jump", "paste", "edit below", "switch"]

TYPO_SHARE = 0.03
"""Of keys: what a person has to correct at once."""
ACCEPT_SHARE = 0.02
"""Of keys: after it the rest of the line comes at once."""
JUMP_SHARE = 0.15
"""Of lines: after it the person looks elsewhere and comes back."""
EDIT_BELOW_SHARE = 0.15
"""Of lines: after it something below the cursor changes."""
REGION_LINES = 10
PASTED_LINES = 5
FAR_LINES = 40
"""How far from the cursor a jump or an edit is, at most."""
MIN_LINES = 60
"""A shorter file is no place for a session."""

_KEY = re.compile(r"\n[ \t]*|.", re.DOTALL)
"""One key; Enter brings the indentation along."""
_WORD = re.compile(r"[A-Za-z_]{3,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What the person did, and the document and cursor that it led to."""

    kind: EventKind
    document: str
    language: str
    text: str
    cursor: int
    ahead: str = ""
    """What the person types next, a line of it at least. Empty where they do not go on here."""


def events(
    sources: Sequence[SourceText], count: int, seed: int, *, region_lines: int = REGION_LINES
) -> list[Event]:
    """The first `count` events of a session. Raises `ValueError` when no file is long enough."""
    long_enough = [source for source in sources if source.text.count("\n") >= MIN_LINES]
    if not long_enough:
        raise ValueError(f"an editing session needs a file of {MIN_LINES} lines")
    return list(islice(_session(long_enough, random.Random(seed), region_lines), count))


def _session(
    sources: Sequence[SourceText], draw: random.Random, region_lines: int
) -> Iterator[Event]:
    """Without end: two files for three turns each, then two others."""
    while True:
        drawn = draw.sample(sources, min(2, len(sources)))
        editors = [_Editor(source, draw, region_lines) for source in drawn]
        for turn in range(3):
            for editor in editors:
                yield editor.event("switch" if turn else "open")
                yield from editor.work()


class _Editor:
    """One document and its cursor, and what a person does there."""

    def __init__(self, source: SourceText, draw: random.Random, region_lines: int) -> None:
        self._source, self._draw, self._region_lines = source, draw, region_lines
        self._text, self._cursor = source.text, 0
        self._ahead = ""
        self._take_region_out()

    def event(self, kind: EventKind) -> Event:
        """The state as it is, reached by `kind`."""
        return Event(
            kind=kind,
            document=self._source.name,
            language=self._source.language,
            text=self._text,
            cursor=self._cursor,
            ahead=self._ahead,
        )

    def work(self) -> Iterator[Event]:
        """Type the region that was taken out, paste a block, and take the next region out."""
        while key := _KEY.match(self._ahead):
            if self._draw.random() < TYPO_SHARE:
                ahead, self._ahead = self._ahead, ""
                yield self._insert("type", self._draw.choice("etaoinsr"))
                self._ahead = ahead
                yield self._erase()
            yield self._take_over("type", key[0])
            if key[0].startswith("\n"):
                yield from self._look_up()
            elif self._draw.random() < ACCEPT_SHARE and (rest := self._ahead.partition("\n")[0]):
                yield self._take_over("accept", rest)
        yield self._insert("paste", self._block(PASTED_LINES))
        self._take_region_out()
        yield self.event("jump")

    def _look_up(self) -> Iterator[Event]:
        """What may happen at the end of a line."""
        chance = self._draw.random()
        if chance < JUMP_SHARE:
            back, ahead = self._cursor, self._ahead
            self._cursor, self._ahead = self._place_near(back), ""
            yield self.event("jump")
            self._cursor, self._ahead = back, ahead
            yield self.event("jump")
        elif chance < JUMP_SHARE + EDIT_BELOW_SHARE:
            yield from self._edit_below()

    def _take_over(self, kind: EventKind, text: str) -> Event:
        """What was ahead is there now."""
        self._ahead = self._ahead.removeprefix(text)
        return self._insert(kind, text)

    def _insert(self, kind: EventKind, text: str) -> Event:
        self._text = self._text[: self._cursor] + text + self._text[self._cursor :]
        self._cursor += len(text)
        return self.event(kind)

    def _erase(self) -> Event:
        self._text = self._text[: self._cursor - 1] + self._text[self._cursor :]
        self._cursor -= 1
        return self.event("erase")

    def _edit_below(self) -> Iterator[Event]:
        """A word some lines below gets another name."""
        end = self._nth_line_end(FAR_LINES)
        words = list(_WORD.finditer(self._text, self._cursor, end))
        if words:
            word = self._draw.choice(words)
            self._text = self._text[: word.end()] + "_new" + self._text[word.end() :]
            yield self.event("edit below")

    # ---- places in the text ----------------------------------------------------------------

    def _take_region_out(self) -> None:
        lines = self._text.splitlines(keepends=True)
        first = self._draw.randrange(len(lines) - self._region_lines)
        region = "".join(lines[first : first + self._region_lines])
        start = len("".join(lines[:first]))
        start += len(region) - len(region.lstrip())  # its first indentation stays
        self._ahead = region.strip()
        self._text = self._text[:start] + self._text[start + len(self._ahead) :]
        self._cursor = start

    def _block(self, num_lines: int) -> str:
        lines = self._text.splitlines(keepends=True)
        first = self._draw.randrange(len(lines) - num_lines)
        return "\n" + "".join(lines[first : first + num_lines])

    def _place_near(self, cursor: int) -> int:
        """The end of a line near by."""
        line_ends = [found.start() for found in re.finditer(r"\n", self._text)]
        here = sum(end < cursor for end in line_ends)
        near = line_ends[max(0, here - FAR_LINES) : here + FAR_LINES]
        return self._draw.choice(near)

    def _nth_line_end(self, count: int) -> int:
        end = self._cursor
        for _ in range(count):
            end = self._text.find("\n", end + 1)
            if end < 0:
                return len(self._text)
        return end
