"""A fake engine, and the real language server on stdio around it: what the session tests run.

`python fake_server.py --text ' + 1' --journal FILE` serves a client on stdin and stdout. The
fake writes what happens to it as JSON lines to the journal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from lsp_server.engine_link import model_download
from lsp_server.engine_link.engine_process import EngineState
from lsp_server.launch import run_stdio
from lsp_server.settings import Settings
from model.api import (
    Candidate,
    Completer,
    EngineUnavailableError,
    Frame,
    FrameListener,
    InfillRequest,
    InfillResult,
)


class FakeCompleter:
    """Answers every request, and every hole of it, with the same texts; the first is the most
    confident."""

    def __init__(self, *texts: str, delay_s: float = 0.0, fault: Exception | None = None) -> None:
        self.texts = texts
        self.delay_s = delay_s
        self.fault = fault
        self.requests: list[InfillRequest] = []
        self.cancelled = 0

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        self.requests.append(request)
        self.record(
            "request",
            prefix=request.prefix,
            suffix=request.suffix,
            between=list(request.between),
            max_lines=request.max_lines,
            min_indent=request.min_indent,
            draft=request.draft,
        )
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            self.record("cancelled")
            raise
        if self.fault is not None:
            raise self.fault
        if on_frame is not None:
            for text in self.texts[:1]:  # drafted but for the last character
                on_frame(Frame(step=1, slots=(text[:-1], "~"), accepted=1, text=text))
        candidates = tuple(
            Candidate(texts=(text,) * (len(request.between) + 1), confidence=0.9 - index / 10)
            for index, text in enumerate(self.texts)
            if text.startswith(request.typed)
        )
        return InfillResult(
            candidates=candidates, forwards=1, tokens=1, encoded_tokens=1, ms=1.0, verified=True
        )

    async def close(self) -> None:
        self.record("closed")

    def record(self, event: str, **details: object) -> None:
        """Hook for the journal."""


class FakeEngine:
    """An `EngineSource` that takes a while to load, or never gets there."""

    def __init__(
        self,
        completer: FakeCompleter,
        on_state: Callable[[EngineState], None] = lambda state: None,
        *,
        loading_s: float = 0.0,
        failure: str = "",
    ) -> None:
        self._completer = completer
        self._on_state = on_state
        self._loading_s = loading_s
        self._failure = failure
        self._ready = asyncio.Event()
        self._load: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._load is None:
            self._completer.record("start")
            self._load = asyncio.create_task(self._loading())

    async def _loading(self) -> None:
        self._on_state(EngineState(kind="starting", message="starting the engine"))
        for fraction in (0.25, 0.75):
            await asyncio.sleep(self._loading_s / 2)
            message = f"loading the model ({fraction:.0%})"
            self._on_state(EngineState(kind="loading", message=message, fraction=fraction))
        if self._failure:
            self._on_state(EngineState(kind="failed", message=self._failure))
        else:
            self._on_state(EngineState(kind="ready", message="ready"))
            self._ready.set()

    async def completer(self, timeout: float) -> Completer:
        await self.start()
        try:
            if not self._ready.is_set():  # of no time at all `wait_for` makes no use
                await asyncio.wait_for(self._ready.wait(), timeout)
        except asyncio.TimeoutError:
            reason = self._failure or "engine is loading the model"
            raise EngineUnavailableError(reason) from None
        return self._completer

    async def close(self) -> None:
        if self._load is not None:
            self._load.cancel()
        await self._completer.close()


def use_test_backbones() -> None:
    """Know those that a test has in place of the real ones, and fetch these."""
    if "MEZZOTINT_TEST_KNOWN" in os.environ:
        script = Path(__file__).parents[1] / "model" / "backbone" / "fake_sources.py"
        sys.path.append(str(script.parent))
        from fake_sources import take_environments_backbones

        take_environments_backbones()
        model_download.FETCH_COMMAND = (sys.executable, str(script), "fetch-process")


def main() -> int:
    use_test_backbones()
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--loading-s", type=float, default=0.0)
    parser.add_argument("--failure", default="")
    parser.add_argument("--fault", default="")
    parser.add_argument("--print", default="", help="written to stdout when a request arrives")
    parser.add_argument("--journal", type=Path, required=True)
    args = parser.parse_args()
    fault = RuntimeError(args.fault) if args.fault else None

    class JournalingCompleter(FakeCompleter):
        def record(self, event: str, **details: object) -> None:
            with args.journal.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps({"event": event, **details}) + "\n")
            if args.print:
                print(args.print, flush=True)

    def make_engine(settings: Settings, on_state: Callable[[EngineState], None]) -> FakeEngine:
        model = settings.model.path
        completer = JournalingCompleter(*args.text, delay_s=args.delay_s, fault=fault)
        completer.record("engine", model=model)
        failure = "it holds no checkpoint" if model.endswith("broken") else args.failure
        return FakeEngine(completer, on_state, loading_s=args.loading_s, failure=failure)

    return run_stdio(make_engine)


if __name__ == "__main__":
    raise SystemExit(main())
