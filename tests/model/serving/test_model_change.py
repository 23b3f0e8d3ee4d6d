"""`/v1/models/load`: another model takes the place of the one that serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

Served = Callable[..., Any]


async def completed(engine: Any) -> str:
    answer = await engine.post("/v1/completions", prompt="x", max_tokens=8)
    return answer.json()["choices"][0]["text"]


async def test_the_next_request_goes_to_the_new_model(served: Served, scripted: Any) -> None:
    models = {"old": scripted("one"), "new": scripted("two")}
    async with served(models, model="old") as engine, engine.http() as http:
        assert await completed(engine) == "one"
        answer = await engine.post("/v1/models/load", model="new")
        assert (answer.status_code, answer.json()["id"]) == (200, "new")
        assert await completed(engine) == "two"
        assert (await http.get("/health")).json()["model"] == "new"
        listing = (await http.get("/v1/models")).json()
        assert [model["id"] for model in listing["data"]] == ["new"]


async def test_a_request_that_has_begun_is_finished_by_its_model(
    served: Served, scripted: Any
) -> None:
    class Held(scripted):
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def complete(self, *args: Any, **options: Any) -> Any:
            self.begun.set()
            await self.may_end.wait()
            return await super().complete(*args, **options)

    old = Held("one")
    async with served({"old": old, "new": scripted("two")}, model="old") as engine:
        waiting = asyncio.create_task(completed(engine))
        await old.begun.wait()
        await engine.post("/v1/models/load", model="new")
        assert await completed(engine) == "two"
        old.may_end.set()
        assert await waiting == "one"


async def test_a_model_that_cannot_be_loaded_changes_nothing(served: Served, scripted: Any) -> None:
    async with served({"old": scripted("one")}, model="old") as engine:
        answer = await engine.post("/v1/models/load", model="nowhere")
        assert answer.status_code >= 400
        assert "there is no checkpoint directory nowhere" in answer.json()["error"]["message"]
        assert await completed(engine) == "one"


@pytest.mark.parametrize(
    ("body", "param"), [({}, "model"), ({"model": 3}, "model"), ({"model": "x", "n": 1}, "n")]
)
async def test_a_body_that_is_wrong_is_named(
    served: Served, scripted: Any, body: dict[str, Any], param: str
) -> None:
    async with served(scripted()) as engine:
        answer = await engine.post("/v1/models/load", **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
