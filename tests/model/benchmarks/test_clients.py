"""Clients at once, each in a place of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from model.api import CompletionError, InfillRequest, InfillResult
from model.benchmarks.clients import Typist, run_clients
from model.benchmarks.http_engine import http_engine
from model.benchmarks.setting import Setting


class SlowCompleter:
    """Takes 20 ms a request, one after the other or all at once."""

    def __init__(self, *, at_once: bool) -> None:
        self._turn = asyncio.Semaphore(100 if at_once else 1)

    async def complete(self, request: InfillRequest, *, on_frame: object = None) -> InfillResult:
        async with self._turn:
            await asyncio.sleep(0.02)
        return InfillResult(candidates=(), forwards=1, tokens=3, encoded_tokens=0, ms=20.0)

    async def close(self) -> None:
        pass


async def test_an_engine_that_works_on_all_at_once_is_reported_as_faster() -> None:
    text = "".join(f"line {n}\n" for n in range(5000))

    async def figures(at_once: bool) -> dict[str, float]:
        typists = [Typist(text, number) for number in range(8)]
        return await run_clients(SlowCompleter(at_once=at_once), typists, 0.1)

    alone, together = await figures(at_once=False), await figures(at_once=True)
    assert together["requests_per_s"] > 2 * alone["requests_per_s"]
    assert together["ms_p95"] < alone["ms_p95"]


def test_clients_sit_in_different_places_and_type_on() -> None:
    text = "".join(f"line {n}\n" for n in range(5000))
    first, second = Typist(text, 0), Typist(text, 1)
    assert first.request().prefix != second.request().prefix
    assert first.request().document != second.request().document


async def test_an_http_engine_that_cannot_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompletionError, match="is no model"):
        async with http_engine(Setting(model=tmp_path / "none", device="cpu")):
            pass
