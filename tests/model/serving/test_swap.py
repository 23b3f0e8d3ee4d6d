from __future__ import annotations

import asyncio
import threading

import pytest

from model.api import (
    Candidate,
    CheckpointError,
    Completer,
    EngineUnavailableError,
    FrameListener,
    InfillRequest,
    InfillResult,
)
from model.serving.swap import SwappableCompleter

REQUEST = InfillRequest(prefix="a")


class Model:
    """Answers with its name once it may."""

    def __init__(self, name: str, *, is_open: bool = True) -> None:
        self.name, self.closed, self.gate = name, 0, asyncio.Event()
        self.started = asyncio.Event()
        if is_open:
            self.gate.set()

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        self.started.set()
        await self.gate.wait()
        assert not self.closed
        candidate = Candidate(texts=(self.name,), confidence=1.0)
        return InfillResult(candidates=(candidate,), forwards=1, tokens=1, encoded_tokens=0, ms=1.0)

    async def close(self) -> None:
        self.closed += 1


async def answer(completer: Completer) -> str:
    return (await completer.complete(REQUEST)).candidates[0].text


async def test_the_old_model_finishes_what_it_began_and_the_new_one_takes_the_rest() -> None:
    old, new = Model("old", is_open=False), Model("new")
    swappable = SwappableCompleter(old)
    begun = [asyncio.create_task(answer(swappable)) for _ in range(3)]
    await old.started.wait()
    await swappable.swap(lambda: new)
    assert swappable.current is new
    assert await answer(swappable) == "new"
    assert not old.closed
    begun.pop().cancel()
    old.gate.set()
    assert await asyncio.gather(*begun) == ["old", "old"]
    assert old.closed == 1
    assert not new.closed


async def test_the_old_model_serves_while_the_new_one_loads() -> None:
    old, new, loaded = Model("old"), Model("new"), threading.Event()
    swappable = SwappableCompleter(old)

    def load() -> Completer:
        assert loaded.wait(60)
        return new

    swap = asyncio.create_task(swappable.swap(load))
    await asyncio.sleep(0)
    assert await answer(swappable) == "old"
    loaded.set()
    await swap
    assert await answer(swappable) == "new"
    assert old.closed == 1


async def test_a_load_that_fails_changes_nothing() -> None:
    old = Model("old")
    swappable = SwappableCompleter(old)

    def load() -> Completer:
        raise CheckpointError("truncated")

    with pytest.raises(CheckpointError, match="truncated"):
        await swappable.swap(load)
    assert await answer(swappable) == "old"
    assert not old.closed


async def test_swaps_queue_and_each_model_is_closed_once() -> None:
    models = [Model(str(n)) for n in range(4)]
    swappable = SwappableCompleter(models[0])
    await asyncio.gather(*(swappable.swap(lambda m=m: m) for m in models[1:]))
    assert await answer(swappable) == "3"
    await swappable.close()
    await swappable.close()
    assert [m.closed for m in models] == [1, 1, 1, 1]
    with pytest.raises(EngineUnavailableError):
        await answer(swappable)
    with pytest.raises(EngineUnavailableError):
        await swappable.swap(lambda: models[0])


async def test_closing_while_a_model_loads_closes_that_one_too() -> None:
    old, new, loaded = Model("old"), Model("new"), threading.Event()
    swappable = SwappableCompleter(old)

    def load() -> Completer:
        assert loaded.wait(60)
        return new

    swap = asyncio.create_task(swappable.swap(load))
    await asyncio.sleep(0)
    await swappable.close()
    loaded.set()
    with pytest.raises(EngineUnavailableError, match="while a model was loading"):
        await swap
    assert (old.closed, new.closed) == (1, 1)
