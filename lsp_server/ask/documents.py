"""Documents as LSP has them, and positions in them: offsets become positions and back only here."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from lsprotocol import types
from pygls.workspace import PositionCodec, TextDocument, Workspace

from lsp_server.ask.session import Snapshot
from lsp_server.ask.trigger import refusal
from lsp_server.document.context import DocumentError, check_document
from lsp_server.document.recent_edits import RecentEdits
from lsp_server.document.related import OpenDocument
from lsp_server.languages import language_called
from lsp_server.settings import Settings


class LspDocument(TextDocument):
    """A document whose lines end where LSP says: at `\\n`, `\\r\\n` and `\\r` only.

    pygls uses `str.splitlines`, which also breaks at form feeds and U+2028; every edit below
    one would then land on the wrong line. It also puts an edit past a line's end elsewhere than
    there, and counts the characters of a line one by one.
    """

    _lines: list[str] | None = None
    """Made anew by every edit: somebody may still be reading those of an older version."""

    @property
    def source(self) -> str:
        """The text."""
        if self._source is None and self._lines is not None:
            self._source = "".join(self._lines)
        return super().source

    @property
    def lines(self) -> Sequence[str]:
        """The lines with their ends; the last one is what follows the last line end, or ""."""
        if self._lines is None:
            self._lines = _split(self.source)
        return self._lines

    def apply_change(self, change: types.TextDocumentContentChangeEvent) -> None:
        """Change the text as the client did."""
        if not isinstance(change, types.TextDocumentContentChangePartial):
            self._source, self._lines = change.text, None
            return
        lines, ends = self.lines, (change.range.start, change.range.end)
        (first, start), (last, end) = sorted(_clamped(lines, self.position_codec, p) for p in ends)
        text = lines[first][:start] + change.text + lines[last][end:]
        if first and lines[first - 1].endswith("\r"):  # a `\n` that comes behind it is part of it
            first -= 1
            text = lines[first] + text
        changed = _split(text)
        if last < len(lines) - 1:
            changed.pop()  # what follows the last line end is there already
        self._lines = [*lines[:first], *changed, *lines[last + 1 :]]
        self._source = None


def _split(text: str) -> list[str]:
    if "\r" not in text:  # several times as fast, which tells in files of one long line
        *ended, last = text.split("\n")
        return [*(f"{line}\n" for line in ended), last]
    lines = list(io.StringIO(text, newline=""))
    if not lines or lines[-1].endswith(("\n", "\r")):
        lines.append("")
    return lines


class LspWorkspace(Workspace):
    """Makes the client's documents `LspDocument`s, cells of notebooks included."""

    def _create_text_document(
        self,
        doc_uri: str,
        source: str | None = None,
        version: int | None = None,
        language_id: str | None = None,
    ) -> TextDocument:
        return LspDocument(
            doc_uri,
            source=source,
            version=version,
            language_id=language_id,
            position_codec=self.position_codec,
        )

    def update_notebook_document(self, params: types.DidChangeNotebookDocumentParams) -> None:
        """Close, open and write in cells. In this order: pygls opens first, and a cell that is
        closed and opened anew would be gone."""
        cells = params.change.cells
        if cells is None:
            return
        if cells.structure is not None:
            for closed in cells.structure.did_close or []:
                self.remove_text_document(closed.uri)
            for opened in cells.structure.did_open or []:
                self.put_text_document(opened, notebook_uri=params.notebook_document.uri)
        for written in cells.text_content or []:
            for change in written.changes:
                self.update_text_document(written.document, change)


def name_of(uri: str) -> str:
    """What the document of a URI is filed under, by pygls and by us: a client may quote the same
    one differently from time to time, as in `file:///c:/a.py` and `file:///c%3A/a.py`."""
    return unquote(uri)


def document_at(uri: str, workspace: Workspace) -> TextDocument | None:
    """The document that the client has opened as `uri`, if there is one; never one from disk."""
    return workspace.text_documents.get(name_of(uri))


@dataclass(frozen=True, slots=True)
class Place:
    """One cursor position, both ways of counting it."""

    position: types.Position
    """In the client's encoding, clamped to the document."""
    offset: int
    """In characters of the document's text."""
    word: str
    """The identifier characters just before it on its line."""


def locate(lines: Sequence[str], codec: PositionCodec, position: types.Position) -> Place:
    """Find a client's position in the lines of a document.

    Past the end of a line means its end, past the last line the end of the document. A position
    inside a character (a surrogate pair, a UTF-8 sequence) means the end of that character.
    """
    number, column = _clamped(lines, codec, position)
    before = lines[number][:column]
    # Backwards: `\w*$` would be tried at every character of every word.
    word = re.compile(r"\w*").match(before[::-1])
    return Place(
        types.Position(number, num_units(before, codec)),
        sum(map(len, lines[:number])) + column,
        word.group()[::-1] if word else "",
    )


def _clamped(
    lines: Sequence[str], codec: PositionCodec, position: types.Position
) -> tuple[int, int]:
    """Line and column of a client's position, in characters."""
    number = min(position.line, len(lines) - 1)
    line = lines[number].rstrip("\r\n")
    return number, len(line) if position.line > number else _column(line, codec, position.character)


def offsets(lines: Sequence[str], codec: PositionCodec, span: types.Range) -> tuple[int, int]:
    """Where a client's range begins and ends, in characters, in this order."""
    start, end = sorted(locate(lines, codec, at).offset for at in (span.start, span.end))
    return start, end


def num_units(text: str, codec: PositionCodec) -> int:
    """How many of the client's units `text` takes."""
    if text.isascii():
        return len(text)
    encoding, size = _ENCODINGS.get(codec.encoding, ("utf-16-le", 2))
    return len(text.encode(encoding, "surrogatepass")) // size


_ENCODINGS: dict[types.PositionEncodingKind | str | None, tuple[str, int]] = {
    types.PositionEncodingKind.Utf8: ("utf-8", 1),
    types.PositionEncodingKind.Utf32: ("utf-32-le", 4),
}
_MAX_UNITS = 4
"""Of one character."""


def _column(line: str, codec: PositionCodec, units: int) -> int:
    """How many characters of `line` take the first `units` of the client's units.

    In steps that shrink as fast as what is left to go back over: no slower than counting.
    """
    column = min(units, len(line))  # no character takes less than one
    excess = num_units(line[:column], codec) - units
    while excess > 0:
        step = max(1, excess // _MAX_UNITS)
        excess -= num_units(line[column - step : column], codec)
        if excess < 0:
            break  # the position is inside of this character
        column -= step
    return column


def position_at(lines: Sequence[str], codec: PositionCodec, offset: int) -> types.Position:
    """The client's position of a character offset into the lines of a document."""
    for number, line in enumerate(lines):
        if offset < len(line) or number == len(lines) - 1:
            return types.Position(number, num_units(line[:offset], codec))
        offset -= len(line)
    return types.Position(0, 0)


def language(document: TextDocument) -> str:
    """The LSP language id that the client or, where it names none, the file name tells."""
    return language_called(document.language_id or "", document.path)


def snapshot_of(
    document: TextDocument, text: str, offset: int, others: tuple[OpenDocument, ...] = ()
) -> Snapshot:
    """The document as it is now, or as `text` is about to make it, with its cursor."""
    return Snapshot(
        document=name_of(document.uri),
        path=document.path,
        language=language(document),
        text=text,
        offset=offset,
        others=others,
    )


def documents_beside(
    document: TextDocument, workspace: Workspace, settings: Settings
) -> tuple[OpenDocument, ...]:
    """The other open documents whose text may reach the model: those that it completes in."""
    return tuple(
        OpenDocument(
            name=name_of(other.uri), path=other.path, language=language(other), text=other.source
        )
        for other in workspace.text_documents.values()
        if other is not document and may_be_read(other, settings)
    )


def is_completed(document: TextDocument, settings: Settings) -> bool:
    """Whether the settings let a person ask for something in a document."""
    where = document.path, language(document), settings
    return refusal(*where, name=name_of(document.uri), explicit=True) is None


def may_be_read(document: TextDocument, settings: Settings) -> bool:
    """Whether a document is one to complete in: switched on, not excluded, small, and text."""
    if not is_completed(document, settings):
        return False
    try:
        check_document(document.source, name=document.path, max_kb=settings.max_file_kb)
    except DocumentError:
        return False
    return True


def note_edits(
    edits: RecentEdits,
    document: TextDocument,
    changes: Sequence[types.TextDocumentContentChangeEvent],
) -> None:
    """Remember where `changes`, in the order that they were made in, have changed the document."""
    name = name_of(document.uri)
    for change in changes:
        if isinstance(change, types.TextDocumentContentChangePartial):
            first, last = change.range.start.line, change.range.end.line
            edits.note(name, first, last, change.text.count("\n"))
        else:
            edits.forget(name)
