"""Text of other open documents that is worth reading before the one at hand. No LSP types.

Declarations of documents that this one imports, then stretches of open documents that share words
with the surroundings of the cursor, those edited of late before others. What was chosen stays while
the user types: the engine keeps what it has read, as long as it begins alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from lsp_server.document.context import normalised
from lsp_server.document.outline import outline_of
from lsp_server.document.recent_edits import RecentEdits

MAX_DOCUMENTS = 20
"""The last opened ones are looked at."""
MAX_CHARS = 200_000
"""Longer documents are left alone: comparing all their stretches would take too long."""
STRETCH_LINES = 24
"""The most lines of a stretch, and those around the cursor that it is compared with. A choice
lasts until the cursor is this far away."""
_MIN_SIMILARITY = 0.05
_EDITED_WEIGHT = 2.0
_WORD = re.compile(r"[^\W\d]\w+")

_FAMILIES = (
    {"javascript", "javascriptreact", "typescript", "typescriptreact", "vue", "svelte"},
    {"c", "cpp", "cuda-cpp", "objective-c", "objective-cpp"},
    {"shellscript", "sh", "bash"},
    {"csharp", "cs"},
)
"""Languages whose text is of use to each other."""
_SEES_ITS_FOLDER = frozenset({"go", "java", "csharp", "cs", "kotlin", "scala"})
"""Files of these languages use what others of their folder declare, without an import."""
_SPEAKS_FOR_ITS_FOLDER = frozenset({"__init__", "index", "mod", "lib"})
_COMMENT_SIGNS = {
    "#": "python ruby shellscript sh bash perl r elixir julia powershell yaml toml cmake makefile",
    "//": "javascript javascriptreact typescript typescriptreact go rust java c cpp cuda-cpp "
    "objective-c objective-cpp csharp cs php kotlin swift scala dart zig",
    "--": "lua sql haskell",
}
_COMMENT_SIGN = {
    language: sign for sign, languages in _COMMENT_SIGNS.items() for language in languages.split()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDocument:
    """A document that is open in the editor, and that the model may read."""

    name: str
    """Such as its URI."""
    path: str
    language: str
    """LSP language id."""
    text: str


@dataclass(frozen=True, slots=True)
class _Piece:
    """A text that may be read, and how much it promises."""

    document: OpenDocument
    first_line: int
    text: str
    worth: float

    def repeats(self, other: _Piece) -> bool:
        """Whether both show the same lines."""
        return (
            self.document is other.document
            and self.first_line <= other.first_line + other.text.count("\n")
            and other.first_line <= self.first_line + self.text.count("\n")
        )


@dataclass(frozen=True, slots=True)
class _Choice:
    room: int
    line: int
    """Where the cursor was."""
    documents: frozenset[str]
    text: str


class RelatedText:
    """Chooses text for the documents of one editor window, and remembers what it chose."""

    def __init__(self, edits: RecentEdits | None = None) -> None:
        self._edits = edits or RecentEdits()
        self._choices: dict[str, _Choice] = {}

    def before(
        self, document: OpenDocument, offset: int, others: Sequence[OpenDocument], room: int
    ) -> str:
        """Up to `room` characters of `others` for a cursor at `offset` of `document`: whole pieces,
        the most promising one last, next to the document's own text. Comments name the file that
        each is from and, at the end, the document itself (docs/experiments.md has the reason).

        The same as last time, if that was anything, while the cursor stays nearby, `room` is the
        same, and the documents that it came from are still among `others`.
        """
        line = document.text.count("\n", 0, offset)
        last = self._choices.get(document.name)
        there = {other.name for other in others}
        if (
            last is not None
            and last.text
            and last.room == room
            and abs(last.line - line) <= STRETCH_LINES
            and last.documents <= there
        ):
            return last.text
        heading = _name_of(document)
        pieces = _fitting(_pieces(document, line, others, self._edits), room - len(heading))
        text = "".join(map(_shown, reversed(pieces))) + heading if pieces else ""
        came_from = frozenset(piece.document.name for piece in pieces)
        self._choices[document.name] = _Choice(room, line, came_from, text)
        return text

    def forget(self, document: str) -> None:
        """Drop what was chosen for a closed document."""
        self._choices.pop(document, None)


def _fitting(pieces: Iterable[_Piece], room: int) -> list[_Piece]:
    """The most promising pieces that fit together, in falling order."""
    chosen: list[_Piece] = []
    for piece in sorted(pieces, key=lambda p: (-p.worth, p.document.name, p.first_line)):
        length = len(_shown(piece))
        if length <= room and not any(map(piece.repeats, chosen)):
            chosen.append(piece)
            room -= length
    return chosen


def _shown(piece: _Piece) -> str:
    return f"{_name_of(piece.document)}{normalised(piece.text.rstrip())}\n\n"


def _name_of(document: OpenDocument) -> str:
    """A line that names the document's file; none where the language has no comment for it."""
    sign = _COMMENT_SIGN.get(document.language)
    return normalised(f"{sign} {_pure(document.path).name}\n") if sign else ""


def _pieces(
    document: OpenDocument, line: int, others: Sequence[OpenDocument], edits: RecentEdits
) -> Iterator[_Piece]:
    lines = document.text.splitlines()
    half = STRETCH_LINES // 2
    nearby = _words("\n".join(lines[max(0, line - half) : line + half]))
    related = [o for o in others if _is_akin(document, o) and len(o.text) <= MAX_CHARS]
    related = related[-MAX_DOCUMENTS:]
    spread = _spread(tuple(other.text for other in related))
    for other in related:
        if _is_used_by(document, other):
            yield from _declarations(other, nearby)
        edited = edits.lines_of(other.name)
        for first, text in _stretches(other.text):
            similarity = _similarity(_words(text), nearby, spread)
            last = first + text.count("\n")
            if any(first <= place <= last for place in edited):
                similarity *= _EDITED_WEIGHT
            if similarity >= _MIN_SIMILARITY:
                yield _Piece(other, first, text, similarity)


def _declarations(other: OpenDocument, nearby: frozenset[str]) -> Iterator[_Piece]:
    """What a used document declares of what is mentioned near the cursor: before all else."""
    for declaration in outline_of(other.text, other.language).declarations:
        if declaration.name in nearby:
            worth = 1 + _similarity(_words(declaration.text), nearby, {})
            yield _Piece(other, declaration.line, declaration.text, worth)


def _is_akin(document: OpenDocument, other: OpenDocument) -> bool:
    languages = {document.language, other.language}
    return len(languages) == 1 or any(languages <= family for family in _FAMILIES)


def _is_used_by(document: OpenDocument, other: OpenDocument) -> bool:
    imported = outline_of(document.text, document.language).imported
    path, here = _pure(other.path), _pure(document.path)
    names = {path.stem}
    if path.stem in _SPEAKS_FOR_ITS_FOLDER or other.language == "go":
        names = {path.parent.name}
    beside = document.language in _SEES_ITS_FOLDER and path.parent == here.parent
    return beside or not names.isdisjoint(imported)


def _pure(path: str) -> PurePosixPath:
    return PurePosixPath(path.replace("\\", "/"))


@lru_cache(maxsize=64)
def _stretches(text: str) -> tuple[tuple[int, str], ...]:
    """The text in pieces of at most `STRETCH_LINES` lines, each with the number of its first one.

    A new one begins, where it can, at a line without indentation that follows a blank one.
    """
    lines = text.splitlines()
    pieces: list[tuple[int, str]] = []
    first = 0
    for number in range(1, len(lines) + 1):
        is_full = number - first >= STRETCH_LINES
        if number == len(lines) or is_full or _begins_something(lines, number, first):
            piece = "\n".join(lines[first:number])
            if piece.strip():
                pieces.append((first, piece))
            first = number
    return tuple(pieces)


def _begins_something(lines: Sequence[str], number: int, first: int) -> bool:
    """Whether a new stretch had better begin at line `number`, the one at hand being half full."""
    return (
        number - first >= STRETCH_LINES // 2
        and not lines[number - 1].strip()
        and lines[number][:1].strip() != ""
    )


@lru_cache(maxsize=8)
def _spread(texts: tuple[str, ...]) -> Mapping[str, int]:
    """In how many of the texts each word is."""
    return Counter(word for text in texts for word in _words(text))


@lru_cache(maxsize=4096)
def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text))


def _similarity(words: frozenset[str], others: frozenset[str], spread: Mapping[str, int]) -> float:
    """Jaccard index, in which a word weighs the less the more documents it is in (`spread`): all
    files of a project share their licence and their idioms."""
    common = words & others
    if not common:
        return 0.0
    return _weight(common, spread) / _weight(words | others, spread)


def _weight(words: frozenset[str], spread: Mapping[str, int]) -> float:
    return sum(1 / spread.get(word, 1) for word in words)
