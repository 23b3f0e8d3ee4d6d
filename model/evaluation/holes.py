"""Holes in real source files, as a cursor leaves them: for measuring without tests to run."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.evaluation.problems import read_records

LANGUAGE_OF_SUFFIX = {
    ".py": "python", ".js": "javascript", ".mjs": "javascript", ".jsx": "javascript",
    ".ts": "typescript", ".tsx": "typescript", ".go": "go", ".rs": "rust", ".java": "java",
    ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".hpp": "cpp",
}  # fmt: skip
"""The files that are taken from folders: the languages that the shipped model knows."""

CONTEXT_CHARS = 8192
"""Text on either side of a hole; more than the model sees."""
MAX_HOLE_CHARS = 160
_LINE = re.compile(r"[^\n]+")


@dataclass(frozen=True, slots=True)
class SourceText:
    """One source file; its lines end in `\\n`."""

    name: str
    language: str
    text: str


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

    @property
    def starts_file(self) -> bool:
        """Whether `prefix` reaches back to the file's start."""
        return self.start <= CONTEXT_CHARS

    @property
    def ends_file(self) -> bool:
        """Whether `suffix` reaches to the file's end."""
        return self.end + CONTEXT_CHARS >= len(self.source.text)


def load_sources(paths: Iterable[Path]) -> list[SourceText]:
    """The texts of source files, of all that lie in folders, and of packed corpus files
    (`.jsonl[.gz]` with `text` and `language`, as `heldout.jsonl.gz`).

    Raises `OSError`, and `ValueError` naming what is wrong with which file.
    """
    sources: list[SourceText] = []
    for path in paths:
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.suffix in LANGUAGE_OF_SUFFIX)
            sources += [_read(file) for file in files if file.is_file()]
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            sources += _read_packed(path)
        elif path.suffix in LANGUAGE_OF_SUFFIX:
            sources.append(_read(path))
        else:
            raise ValueError(f"{path}: neither a packed corpus nor a file of a known language")
    sources = [source for source in sources if source.text.strip()]
    if not sources:
        raise ValueError("there is no source text in " + ", ".join(map(str, paths)))
    return sources


def _read(path: Path) -> SourceText:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason})") from None
    return SourceText(str(path), LANGUAGE_OF_SUFFIX[path.suffix], text)


def _read_packed(path: Path) -> list[SourceText]:
    sources: list[SourceText] = []
    for where, record in read_records(path):
        if "format" in record and not sources:
            continue  # the shard's own header
        for field in ("text", "language"):
            if not isinstance(record.get(field), str):
                raise ValueError(f"{where}: the field {field!r} is missing or no text")
        sources.append(SourceText(where, record["language"], record["text"]))
    return sources


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
