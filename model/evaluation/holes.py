"""Holes in real source files, as a cursor leaves them: for measuring without tests to run."""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.evaluation.sources import SourceText

CONTEXT_CHARS = 8192
"""Text on either side of a hole; more than the model sees."""
MAX_HOLE_CHARS = 160
_LINE = re.compile(r"[^\n]+")


def add_hole_arguments(parser: argparse.ArgumentParser, *, limit: int) -> None:
    """The options that say which holes to cut, at most `limit` unless told otherwise."""
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="PATH",
        help="source files, folders of them, or a packed corpus file (heldout.jsonl.gz)",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=int, default=limit, metavar="N", help="holes to cut (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="where they are cut (%(default)s)")


def check_hole_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for what `add_hole_arguments` cannot tell by itself."""
    if args.limit < 1:
        raise ValueError(f"--limit is {args.limit}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """A hole in a file, what was in it, and the text around it."""

    source: SourceText
    kind: Literal["rest of line", "whole line"]
    start: int
    """Character of the file where it begins."""
    end: int

    @property
    def middle(self) -> str:
        """What was in it."""
        return self.source.text[self.start : self.end]

    @property
    def prefix(self) -> str:
        """Text before it, from the file's start or from a window's."""
        return self.source.text[max(0, self.start - CONTEXT_CHARS) : self.start]

    @property
    def suffix(self) -> str:
        """Text after it, to the file's end or to a window's."""
        return self.source.text[self.end : self.end + CONTEXT_CHARS]


def cut_holes(sources: Sequence[SourceText], count: int, seed: int) -> list[Hole]:
    """`count` holes at random places, each as likely in every file, the same for the same seed.

    Every other one is the rest of a line from any character on, also inside a word; the others
    are whole lines behind their indentation. None is blank.
    """
    draw = random.Random(seed)
    lines = {source: _lines(source.text) for source in sources}
    usable = [source for source in sources if lines[source]]
    if not usable:
        raise ValueError(f"the files have no line of 1 to {MAX_HOLE_CHARS} characters")
    holes: list[Hole] = []
    while len(holes) < count:
        source = draw.choice(usable)
        start, end = draw.choice(lines[source])
        if len(holes) % 2:
            holes.append(Hole(source=source, kind="whole line", start=start, end=end))
        else:
            start = draw.randrange(start, end)
            holes.append(Hole(source=source, kind="rest of line", start=start, end=end))
    return holes


def _lines(text: str) -> list[tuple[int, int]]:
    """(start behind the indentation, end before trailing space) of the lines that are not blank."""
    spans: list[tuple[int, int]] = []
    for match in _LINE.finditer(text):
        line = match[0]
        start = match.start() + len(line) - len(line.lstrip())
        end = match.start() + len(line.rstrip())
        if 0 < end - start <= MAX_HOLE_CHARS:
            spans.append((start, end))
    return spans
