"""What is offered at a place in a document: filling, and quick fixes for the hints at holes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lsprotocol import types
from pygls.workspace import TextDocument

from lsp_server.ask.documents import language, locate
from lsp_server.commands import HERE, HOLES, SELECTION, TITLES
from lsp_server.document.holes import Hole, find_holes
from lsp_server.server import MezzotintServer
from lsp_server.settings import SECTION

_REWRITE = types.CodeActionKind.RefactorRewrite.value
_KINDS = {command: f"{_REWRITE}.{SECTION}.{command.rpartition('.')[2]}" for command in TITLES}
_QUICK_FIX = types.CodeActionKind.QuickFix.value


def register(server: MezzotintServer) -> None:
    """Have `server` offer them."""
    options = types.CodeActionOptions(code_action_kinds=[_QUICK_FIX, *_KINDS.values()])
    server.feature(types.TEXT_DOCUMENT_CODE_ACTION, options)(on_code_action)


def on_code_action(ls: MezzotintServer, params: types.CodeActionParams) -> list[types.CodeAction]:
    """What can be filled here. Unasked, as for a light bulb: only what there is a sign for."""
    document = ls.document(params.text_document.uri)
    if document is None or not ls.completes(document):
        return []
    asked = params.context.trigger_kind != types.CodeActionTriggerKind.Automatic
    # Editors ask after every key: the whole file is read where there is a sign on the line.
    is_marked = asked or _is_marked(document, params.range.start.line)
    is_hinted = any(hint.source == SECTION for hint in params.context.diagnostics)
    holes = find_holes(document.source, language(document)) if is_marked or is_hinted else []
    about: dict[str, Any] = {"uri": params.text_document.uri, "version": document.version}
    offered = [
        *_quick_fixes(document, about, holes, params.context.diagnostics),
        *_rewrites(about, holes if is_marked else [], params.range, asked=asked),
    ]
    only = params.context.only
    return [
        action
        for action in offered
        if only is None or any(f"{action.kind}.".startswith(f"{kind}.") for kind in only)
    ]


def _quick_fixes(
    document: TextDocument,
    about: dict[str, Any],
    holes: list[Hole],
    diagnostics: Sequence[types.Diagnostic],
) -> list[types.CodeAction]:
    """For each of our hints at which there still is a hole: that one filled."""
    lines, codec = document.lines, document.position_codec
    fixes: list[types.CodeAction] = []
    for hint in diagnostics:
        if hint.source != SECTION:
            continue
        start = locate(lines, codec, hint.range.start).offset
        end = locate(lines, codec, hint.range.end).offset
        if any(start <= hole.marked_from and hole.end <= end for hole in holes):
            fix = _action("Fill this hole", _QUICK_FIX, HOLES, about | {"range": _json(hint.range)})
            fix.diagnostics = [hint]
            fixes.append(fix)
    return fixes


def _rewrites(
    about: dict[str, Any], holes: list[Hole], span: types.Range, *, asked: bool
) -> list[types.CodeAction]:
    place = _json(span)
    offered: list[tuple[str, str, dict[str, Any]]] = []
    if span.start != span.end:
        offered.append((SELECTION, "", about | {"range": place}))
    elif asked:
        offered.append((HERE, "", about | {"position": place["start"]}))
    if holes:
        offered.append((HOLES, f" ({len(holes)})", about))
    return [
        _action(TITLES[command] + note, _KINDS[command], command, argument)
        for command, note, argument in offered
    ]


def _action(title: str, kind: str, command: str, argument: dict[str, Any]) -> types.CodeAction:
    run = types.Command(TITLES[command], command, arguments=[argument])
    return types.CodeAction(title=title, kind=kind, command=run)


def _json(span: types.Range) -> dict[str, dict[str, int]]:
    return {
        name: {"line": at.line, "character": at.character}
        for name, at in (("start", span.start), ("end", span.end))
    }


def _is_marked(document: TextDocument, line: int) -> bool:
    lines = document.lines
    return line < len(lines) and bool(find_holes(lines[line], language(document)))
