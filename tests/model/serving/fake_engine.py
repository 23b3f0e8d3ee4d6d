"""A real engine process around a completer without a model.

The name of the model directory says how it behaves (`slow`, `broken`), and so does a request's
prefix: `wait` never finishes by itself, and says so in files in the directory named by `suffix`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from model.api import (
    Candidate,
    CheckpointError,
    EngineOverloadedError,
    Frame,
    FrameListener,
    InfillRequest,
    InfillResult,
)
from model.serving.__main__ import parse_args, run


class FakeCompleter:
    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        match request.prefix:
            case "wait":
                await self._wait(Path(request.suffix))
            case "overload":
                raise EngineOverloadedError("too much to do")
            case "bug":
                raise ValueError("the request was: bug")
            case _:
                pass
        for step in range(2 if on_frame else 0):
            on_frame(Frame(step=step, slots=(None, "é", "")))
        return answer(f"{request.typed}{os.getpid()}")

    async def _wait(self, directory: Path) -> None:
        (directory / "started").touch()
        try:
            await asyncio.Event().wait()
        finally:
            (directory / "cancelled").touch()

    async def close(self) -> None:
        pass


def answer(text: str) -> InfillResult:
    candidate = Candidate(texts=(text,), confidence=0.5)
    return InfillResult(candidates=(candidate,), forwards=2, tokens=3, encoded_tokens=4, ms=5.0)


def load(model: Path) -> FakeCompleter:
    if model.name == "slow":
        time.sleep(0.7)
    if model.name == "broken":
        raise CheckpointError(f"{model} holds no checkpoint; download one")
    return FakeCompleter()


if __name__ == "__main__":
    args = parse_args()
    sys.exit(run(args, lambda model: load(Path(model))))
