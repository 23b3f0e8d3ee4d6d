"""Documents as LSP has them, and positions in them: offsets become positions and back only here."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lsprotocol import types
from pygls.workspace import PositionCodec, TextDocument, Workspace

from lsp_server.context import DocumentError, check_document, language_of
from lsp_server.recent_edits import RecentEdits
from lsp_server.related import OpenDocument
from lsp_server.session import Snapshot
from lsp_server.settings import Settings
from lsp_server.trigger import refusal


class LspDocument(TextDocument):
    """A document whose lines end where LSP says: at `\\n`, `\\r\\n` and `\\r` only.

    pygls uses `str.splitlines`, which also breaks at form feeds and U+2028; every edit below
    one would then land on the wrong line.
    """

    @property
    def lines(self) -> Sequence[str]:
        """The lines with their ends; the last one is what follows the last line end, or ""."""
        lines = list(io.StringIO(self.source, newline=""))
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
    # Clamped here, because pygls counts the line end as part of the line (so that a column may
    # fall between `\r` and `\n`) and takes a last line without one to be a character shorter.
    number = min(position.line, len(lines) - 1)
    line = lines[number].rstrip("\r\n")
    units = codec.client_num_units(line)
    if position.line == number:
        units = min(units, position.character)
    place = codec.position_from_client_units((line,), types.Position(0, units))
    before = line[: place.character]
    word = re.search(r"\w*$", before)
    return Place(
        types.Position(number, codec.client_num_units(before)),
        sum(map(len, lines[:number])) + place.character,
        word.group() if word else "",
    )


def position_at(lines: Sequence[str], codec: PositionCodec, offset: int) -> types.Position:
    """The client's position of a character offset into the lines of a document."""
    for number, line in enumerate(lines):
        if offset < len(line) or number == len(lines) - 1:
            return types.Position(number, codec.client_num_units(line[:offset]))
        offset -= len(line)
    return types.Position(0, 0)


def language(document: TextDocument) -> str:
    """The LSP language id that the client or, where it names none, the file name tells."""
    return document.language_id or language_of(document.path)


def snapshot_of(
    document: TextDocument, text: str, offset: int, others: tuple[OpenDocument, ...] = ()
) -> Snapshot:
    """The document as it is now, or as `text` is about to make it, with its cursor."""
    return Snapshot(
        document=document.uri,
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
        OpenDocument(name=other.uri, path=other.path, language=language(other), text=other.source)
        for other in workspace.text_documents.values()
        if other is not document and may_be_read(other, settings)
    )


def may_be_read(document: TextDocument, settings: Settings) -> bool:
    """Whether a document is one to complete in: switched on, not excluded, small, and text."""
    if refusal(document.path, language(document), settings, explicit=True) is not None:
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
    for change in changes:
        if isinstance(change, types.TextDocumentContentChangePartial):
            first, last = change.range.start.line, change.range.end.line
            edits.note(document.uri, first, last, change.text.count("\n"))
        else:
            edits.forget(document.uri)
