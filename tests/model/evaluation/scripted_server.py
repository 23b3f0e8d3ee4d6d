"""The real language server on stdio, around a model that follows a script.

`python scripted_server.py SCRIPT.json`: of the script's entries {"after", "text", "confidence"},
the first whose `after` ends the text before the cursor is what the model makes. The text "DIE"
ends the process, and "SLEEP" makes the model think for a minute. Every prefix goes to the file
`SCRIPT.json.journal`, one JSON string a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from lsp_server.engine_link.engine_process import EngineState
from lsp_server.launch import run_stdio
from lsp_server.settings import Settings
from model.api import (
    Candidate,
    Completer,
    EngineUnavailableError,
    InfillRequest,
    InfillResult,
)


class ScriptedCompleter:
    def __init__(self, script: Path) -> None:
        self._entries = json.loads(script.read_text("utf-8"))
        self._journal = script.with_name(f"{script.name}.journal")

    async def complete(self, request: InfillRequest, *, on_frame: object = None) -> InfillResult:
        before = request.prefix + request.typed
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(before) + "\n")
        made: tuple[Candidate, ...] = ()
        for entry in self._entries:
            if before.endswith(entry["after"]):
                if entry["text"] == "DIE":
                    print("the script says so", file=sys.stderr, flush=True)
                    os._exit(7)
                if entry["text"] == "SLEEP":
                    await asyncio.sleep(60)
                text = request.typed + entry["text"]
                made = (Candidate(texts=(text,), confidence=entry["confidence"]),)
                break
        return InfillResult(candidates=made, forwards=1, tokens=1, encoded_tokens=1, ms=1.5)

    async def close(self) -> None:
        pass


class ScriptedEngine:
    def __init__(self, script: Path, on_state: Callable[[EngineState], None]) -> None:
        self._script = script
        self._on_state = on_state

    async def start(self) -> None:
        if self._script.exists():
            self._on_state(EngineState(kind="ready", message="ready"))
        else:
            self._on_state(EngineState(kind="failed", message="there is no checkpoint"))

    async def completer(self, timeout: float) -> Completer:
        await self.start()
        if not self._script.exists():
            raise EngineUnavailableError("there is no checkpoint")
        return ScriptedCompleter(self._script)

    async def close(self) -> None:
        pass


def make_engine(settings: Settings, on_state: Callable[[EngineState], None]) -> ScriptedEngine:
    return ScriptedEngine(Path(sys.argv[1]), on_state)


if __name__ == "__main__":
    raise SystemExit(run_stdio(make_engine))
