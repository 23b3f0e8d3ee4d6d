"""Documents as the completer sees them: text around the cursor, bounded and with `\\n` line ends.

Offsets here count Python characters into the document as the editor holds it. Line ends are
`\\n`, `\\r\\n` and `\\r`, as in LSP; a form feed or U+2028 ends no line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LineEnding = Literal["\n", "\r\n", "\r"]

_LINE_END = re.compile(r"\r\n|\n|\r")
_BYTE_ORDER_MARK = "\ufeff"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class DocumentError(Exception):
    """The document or the place in it cannot be used. Its text is one sentence for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillContext:
    """What surrounds the holes of one document. All text is encodable and has `\\n` line ends."""

    prefix: str
    """Text before the first hole, from a far edge that rarely moves."""
    suffix: str
    """Text after the last hole, to a far edge that rarely moves."""
    between: tuple[str, ...] = ()
    """The texts between neighbouring holes: one fewer than there are holes."""
    starts_file: bool = True
    """Whether `prefix` begins where the document begins."""
    ends_file: bool = True
    """Whether `suffix` ends where the document ends."""
    language: str = ""
    """LSP language id; empty when unknown."""
    eol: LineEnding = "\n"
    """The document's own line end, which a completion has to be given back in."""
    related: str = ""
    """Text of other documents, which the model reads before `prefix`."""
    before: str = ""
    """Text of the document before `prefix`, which tells what it repeats."""
    after: str = ""
    """Text of the document after `suffix`, likewise."""

    def room_for_related(self, prefix_chars: int) -> int:
        """How much of `prefix_chars` this document leaves to others, in characters.

        Nothing where the window does not reach its beginning. It shrinks in quarters of the
        window: whatever changes at the far edge is a whole prefix for the engine to read.
        """
        if not self.starts_file:
            return 0
        step = max(1, prefix_chars // 4)
        return max(0, prefix_chars - -(-len(self.prefix) // step) * step)


def context_at(
    text: str,
    start: int,
    end: int | None = None,
    *,
    language: str,
    prefix_chars: int,
    suffix_chars: int,
    far_chars: int = 0,
) -> InfillContext:
    """The context of a cursor at `start`, or of the span `start`..`end` that is to be replaced.

    `prefix_chars` and `suffix_chars` bound the windows: each holds at least that many characters
    of the document where it has them, and never more than twice as many. `far_chars` bounds what
    is given beyond them on either side.

    Raises `DocumentError` when the span does not lie in the document.
    """
    end = start if end is None else end
    if not 0 <= start <= end <= len(text):
        raise DocumentError(
            f"the span {start}..{end} is outside the document, "
            f"which has {_count(len(text), 'character')}"
        )
    first = _prefix_edge(text, start, prefix_chars)
    if first == 0 and start and text[0] == _BYTE_ORDER_MARK:
        first = 1  # some editors leave it to us; the model has never seen one
    last = _suffix_edge(text, end, suffix_chars)
    return InfillContext(
        prefix=normalised(text[first:start]),
        suffix=normalised(text[end:last]),
        starts_file=text[:first] in ("", _BYTE_ORDER_MARK),
        ends_file=last == len(text),
        language=language,
        eol=_line_ending(text),
        before=normalised(text[max(0, first - far_chars) : first]),
        after=normalised(text[last : last + far_chars]),
    )


def _chunk(budget: int) -> tuple[int, int]:
    """The step in which a window of `budget` characters moves its far edge, and how much
    further out the edge may go to meet a line start. Together they are the budget."""
    step = max(1, budget * 3 // 4)
    return step, max(0, budget - step)


def _prefix_edge(text: str, cursor: int, budget: int) -> int:
    """Where the prefix's window begins.

    Measured in whole steps from the start of the file, so that typing at the cursor leaves the
    edge, and with it every cached key and value of the prefix, where it is.
    """
    step, slack = _chunk(budget)
    edge = max(0, (cursor - budget) // step * step)
    if _splits_crlf(text, edge):
        edge -= 1
    nearest = max(0, edge - slack)
    line_end = max(text.rfind("\n", nearest, edge), text.rfind("\r", nearest, edge))
    if line_end < 0:
        return 0 if nearest == 0 else edge
    return line_end + 1


def _suffix_edge(text: str, cursor: int, budget: int) -> int:
    """Where the suffix's window ends: whole steps from the END of the file, which typing at the
    cursor does not move."""
    step, slack = _chunk(budget)
    edge = len(text) - max(0, (len(text) - cursor - budget) // step * step)
    line_end = _LINE_END.search(text, max(cursor, edge - 1), edge + slack)
    if line_end:
        edge = line_end.end()
    elif edge + slack >= len(text):
        edge = len(text)
    return edge + 1 if _splits_crlf(text, edge) else edge


def _splits_crlf(text: str, offset: int) -> bool:
    return text[max(0, offset - 1) : offset + 1] == "\r\n"


def normalised(text: str) -> str:
    """`text` as a context holds it: encodable, with `\\n` line ends."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    # An editor that edits by UTF-16 units can leave half a character behind, which no encoder
    # takes.
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def _line_ending(text: str) -> LineEnding:
    newline = text.find("\n")
    if newline > 0 and text[newline - 1] == "\r":
        return "\r\n"
    return "\r" if newline < 0 and "\r" in text else "\n"


def read_document(path: Path, max_kb: int) -> str:
    """The text of a file, line ends untouched, without a byte-order mark.

    Raises `DocumentError` when there is no such file, it cannot be read, is larger than `max_kb`
    kilobytes or is not UTF-8 text.
    """
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise DocumentError(f"{path} {what}; name a text file")
        with path.open("rb") as file:
            # One byte more than allowed tells, whatever the file's size is by now.
            data = file.read(max_kb * 1024 + 1)
    except OSError as error:
        raise DocumentError(f"{path} cannot be read: {error.strerror or error}") from error
    _check_size(len(data), str(path), max_kb)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{path} is not UTF-8 text (byte {error.start + 1}); it is left alone"
        ) from error
    _check_text(text, str(path))
    return text


def check_document(text: str, *, name: str, max_kb: int) -> None:
    """Refuse an open document that `read_document` would refuse as a file.

    Raises `DocumentError`, which calls the document `name`.
    """
    size = len(text)
    if size * 4 > max_kb * 1024:  # else no encoding of it can be too large: the usual case
        size = len(text.encode("utf-8", "replace"))
    _check_size(size, name, max_kb)
    _check_text(text, name)


def _check_size(num_bytes: int, name: str, max_kb: int) -> None:
    if num_bytes > max_kb * 1024:
        raise DocumentError(f"{name} is larger than {max_kb} kB; raise mezzotint.maxFileKB for it")


def _check_text(text: str, name: str) -> None:
    if "\0" in text:
        raise DocumentError(f"{name} holds NUL bytes, so it is binary; it is left alone")


def offset_at(text: str, line: int, column: int) -> int:
    """The offset of a 1-based `line` and `column`, in characters; the cursor stands before it.

    `column` may be one past the end of the line. Raises `DocumentError`.
    """
    bounds = [0]
    bounds += [end.end() for end in _LINE_END.finditer(text)]
    if not 1 <= line <= len(bounds):
        raise DocumentError(
            f"line {line} is outside the document, which has {_count(len(bounds), 'line')}"
        )
    start = bounds[line - 1]
    line_end = _LINE_END.search(text, start)
    length = (line_end.start() if line_end else len(text)) - start
    if not 1 <= column <= length + 1:
        raise DocumentError(
            f"column {column} is outside line {line}, which has {_count(length, 'character')}: "
            f"use 1 to {length + 1}"
        )
    return start + column - 1


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
