from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from model.api import EngineOverloadedError

Served = Callable[..., Any]


async def samples(engine: Any) -> dict[tuple[str, ...], float]:
    async with engine.http() as http:
        text = (await http.get("/metrics")).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_was_answered_and_generated_is_counted(served: Served, scripted: Any) -> None:
    completer = scripted("one two")
    async with served(completer) as engine:
        await engine.post("/v1/completions", prompt="x", n=2)
        await engine.post("/v1/completions", prompt="x", echo=True)
        await engine.post("/v1/../secret/path")
        completer.error = EngineOverloadedError("later")
        await engine.post("/v1/infill", prefix="x")
        found = await samples(engine)
    assert found["mezzotint_http_requests_total", "/v1/completions", "200"] == 1
    assert found["mezzotint_http_requests_total", "/v1/completions", "400"] == 1
    assert found["mezzotint_http_requests_total", "other", "404"] == 1
    assert found["mezzotint_fills_total", "finished"] == 2
    assert found["mezzotint_fills_total", "overloaded"] == 1
    assert found["mezzotint_tokens_total", "generated"] == 4
    assert found["mezzotint_tokens_total", "read"] == 40
    assert found["mezzotint_forwards_total",] == 4
    assert found["mezzotint_fill_seconds_count",] == 2
    assert not any("secret" in part for name in found for part in name)


async def test_running_infills_are_counted_until_they_end(served: Served, scripted: Any) -> None:
    completer = scripted()
    completer.frames_before_hanging = 1
    async with served(completer) as engine, engine.http() as http:
        asking = asyncio.create_task(http.post("/v1/completions", json={"prompt": "x"}))
        while not completer.requests:
            await asyncio.sleep(0.01)
        assert (await samples(engine))["mezzotint_fills_running",] == 1
        asking.cancel()
        await asyncio.wait_for(completer.cancelled.wait(), 5)
        found = await samples(engine)
        while found["mezzotint_fills_running",]:
            found = await samples(engine)
    assert found["mezzotint_fills_total", "cancelled"] == 1
