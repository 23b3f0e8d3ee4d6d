"""A file to measure with, and a completer that takes as long as it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.api import Candidate, FrameListener, InfillRequest, InfillResult
from model.benchmarks.setting import Setting


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, code: str) -> Path:
    """A file of a hundred different lines."""
    file = tmp_path_factory.mktemp("sources") / "stack.py"
    parts = [code.replace("Stack", f"Stack{n}").replace("total", f"total_{n}") for n in range(5)]
    file.write_text("\n\n".join(parts), encoding="utf-8")
    return file


@pytest.fixture
def setting(checkpoint: Path, source: Path) -> Setting:
    return Setting(model=checkpoint, device="cpu", paths=(source,), quick=True)


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A completer sets the threads of the whole process, which other tests share."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


class TimedCompleter:
    """Answers with what `answer` makes of a request, and says that it took so long."""

    def __init__(self, answer: Callable[[InfillRequest], tuple[str, int, float]]) -> None:
        """`answer` gives (text, forwards, milliseconds)."""
        self._answer = answer
        self.requests: list[InfillRequest] = []

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        self.requests.append(request)
        text, forwards, ms = self._answer(request)
        return InfillResult(
            candidates=(Candidate(texts=(text,), confidence=1.0),),
            forwards=forwards,
            tokens=len(text.split()),
            encoded_tokens=0,
            ms=ms,
        )

    async def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def timed_completer() -> type[TimedCompleter]:
    return TimedCompleter
