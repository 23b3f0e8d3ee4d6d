"""`/v1/infill`, our own words over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model.api import EngineOverloadedError
from model.engines import load

Served = Callable[..., Any]


async def test_every_field_of_a_request_arrives(served: Served, scripted: Any) -> None:
    completer = scripted()
    async with served(completer) as engine:
        await engine.post(
            "/v1/infill",
            model="scripted",
            prefix="a",
            between=["b"],
            suffix="c",
            typed="t",
            candidates=3,
            policy="entropy",
            client="me",
            document="d",
        )
    (request,) = completer.requests
    assert (request.prefix, request.between, request.suffix) == ("a", ("b",), "c")
    assert (request.typed, request.candidates, request.policy) == ("t", 3, "entropy")
    # No window of an editor's, whose request this would replace.
    assert (request.client, request.document) == ("http:me", "d")


async def test_a_backbone_fills_two_holes_with_candidates(
    served: Served, tiny_backbone_folder: Path
) -> None:
    async with served(partial(load, tiny_backbone_folder), model=tiny_backbone_folder) as engine:
        body = {"prefix": "def f(", "suffix": "\n", "language": "python", "max_new_tokens": 8}
        lone = (await engine.post("/v1/infill", **body, typed="se", candidates=2)).json()
        both = (await engine.post("/v1/infill", **body, between=["):\n    return "])).json()
    assert lone["object"] == "infill"
    for candidate in lone["candidates"]:
        assert candidate["texts"][0].startswith("se")
        assert len(candidate["token_ends"]) <= len(candidate["probabilities"])
        assert all(0 <= p <= 1 for p in candidate["probabilities"])
    assert lone["context"]["tokens"] > 2
    assert len(both["candidates"][0]["texts"]) == 2


async def test_frames_are_streamed_before_the_result(served: Served, scripted: Any) -> None:
    async with served(scripted("one two")) as engine:
        events = await engine.events("/v1/infill", prefix="x")
    assert [event["object"] for event in events] == ["infill.frame", "infill.frame", "infill"]
    assert events[0]["slots"] == ["one", None]
    assert events[-1]["candidates"][0]["texts"] == ["one two"]
    assert len({event["id"] for event in events}) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_cancels_the_engine(
    served: Served, scripted: Any, *, stream: bool
) -> None:
    completer = scripted()
    completer.frames_before_hanging = 1
    async with served(completer) as engine, engine.http() as http:
        asking = asyncio.create_task(
            http.post("/v1/infill", json={"prefix": "x", "stream": stream})
        )
        while not completer.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait_for(completer.cancelled.wait(), 5)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_overloaded_engine_is_429(served: Served, scripted: Any, *, stream: bool) -> None:
    completer = scripted()
    completer.error = EngineOverloadedError("later")
    async with served(completer) as engine:
        response = await engine.post("/v1/infill", prefix="x", stream=stream)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({}, "prefix"),
        ({"prefix": 1}, "prefix"),
        ({"prefix": "x", "prompt": "x"}, "prompt"),
        ({"prefix": "x", "steps": 0}, "steps"),
        ({"prefix": "x", "between": "y"}, "between"),
        ({"prefix": "x", "stream": "yes"}, "stream"),
    ],
)
async def test_a_wrong_request_is_refused_by_the_name_of_its_field(
    served: Served, scripted: Any, body: dict[str, Any], name: str
) -> None:
    async with served(scripted()) as engine:
        response = await engine.post("/v1/infill", **body)
    assert response.status_code == 400
    assert name in response.json()["error"]["message"]


async def test_another_models_name_is_not_found(served: Served, scripted: Any) -> None:
    async with served(scripted()) as engine:
        response = await engine.post("/v1/infill", prefix="x", model="other")
    assert response.status_code == 404
