"""Two engines without processes, one taking over from the other."""

from __future__ import annotations

import asyncio

import pytest
from fake_server import FakeCompleter, FakeEngine

from lsp_server.window.handover import Handover
from model.api import EngineUnavailableError, InfillRequest

REQUEST = InfillRequest(prefix="x")


class Watched(FakeCompleter):
    def record(self, event: str, **details: object) -> None:
        self.events = [*getattr(self, "events", []), event]


async def loaded(engine: FakeEngine) -> FakeEngine:
    await engine.completer(10)
    return engine


async def first(handover: Handover) -> str:
    completer = await handover.completer(10)
    return (await completer.complete(REQUEST)).candidates[0].text


async def test_the_old_engine_answers_until_the_new_one_can() -> None:
    old = await loaded(FakeEngine(Watched("old")))
    new = FakeEngine(Watched("new"), loading_s=0.2)
    handover = Handover(old, new)
    await handover.start()
    assert await first(handover) == "old"
    await loaded(new)
    assert await first(handover) == "new"


async def test_what_runs_in_the_old_engine_is_finished_there() -> None:
    completer = Watched("old", delay_s=0.2)
    handover = Handover(await loaded(FakeEngine(completer)), FakeEngine(Watched("new")))
    held = await handover.completer(10)
    running = asyncio.create_task(held.complete(REQUEST))
    await asyncio.sleep(0)
    finishing = asyncio.create_task(handover.finish())
    assert (await running).candidates[0].text == "old"
    await finishing
    assert completer.events[-1] == "closed"


async def test_a_caller_that_comes_back_is_answered_by_the_new_engine() -> None:
    new = FakeEngine(Watched("new"), loading_s=0.1)
    handover = Handover(await loaded(FakeEngine(Watched("old"))), new)
    held = await handover.completer(10)
    await loaded(new)
    await handover.finish()
    assert (await held.complete(REQUEST)).candidates[0].text == "new"


async def test_a_new_engine_that_fails_leaves_the_old_one_at_work() -> None:
    new = FakeEngine(Watched("new"), failure="broken")
    handover = Handover(await loaded(FakeEngine(Watched("old"))), new)
    with pytest.raises(EngineUnavailableError, match="broken"):
        await new.completer(0.1)
    assert await first(handover) == "old"
    await handover.close()
