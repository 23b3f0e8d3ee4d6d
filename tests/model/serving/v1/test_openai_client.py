"""The official client of OpenAI's API, as it is, against `mezzotint serve`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from model.api import EngineOverloadedError, InfillRequest
from model.engines import load

Served = Callable[..., Any]


@contextlib.asynccontextmanager
async def client_of(engine: Any, token: str | None = None) -> AsyncIterator[openai.AsyncOpenAI]:
    client = openai.AsyncOpenAI(
        base_url=f"{engine.url}/v1",
        api_key=token or engine.token,
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    )
    async with client:
        yield client


async def test_a_backbone_completes_between_prompt_and_suffix(
    served: Served, tiny_backbone_folder: Path
) -> None:
    body: dict[str, Any] = {
        "model": "tiny",
        "prompt": "import os\n\ndef size(path):\n    return os.",
        "suffix": "\n\n\nprint(size('a'))\n",
        "max_tokens": 16,
        "extra_body": {"language": "python"},
    }
    async with (
        served(partial(load, tiny_backbone_folder), model=tiny_backbone_folder) as engine,
        client_of(engine) as client,
    ):
        whole = await client.completions.create(**body)
        pieces = ""
        usage = None
        stream = await client.completions.create(
            **body, stream=True, stream_options={"include_usage": True}
        )
        async for event in stream:
            pieces += "".join(choice.text for choice in event.choices)
            usage = event.usage or usage
        drawn = await client.completions.create(**body, temperature=1.0, n=3, seed=1)
        again = await client.completions.create(**body, temperature=1.0, n=3, seed=1)
    assert whole.choices[0].text
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert pieces == whole.choices[0].text
    assert whole.usage is not None
    assert usage == whole.usage
    assert whole.usage.prompt_tokens > 20
    assert 0 < whole.usage.completion_tokens <= 16
    assert len({choice.text for choice in drawn.choices}) > 1
    assert [c.text for c in drawn.choices] == [c.text for c in again.choices]


async def test_leaving_a_stream_ends_the_infill_at_its_next_step(
    served: Served, tiny_backbone_folder: Path
) -> None:
    completer: Any = load(tiny_backbone_folder)
    runner = completer.engine.decoder.runner
    run, may_go_on, steps = runner.run, threading.Event(), 0

    def slow_run(batch: Any) -> Any:
        nonlocal steps
        steps += 1
        assert steps == 1 or may_go_on.wait(30)
        return run(batch)

    runner.run = slow_run
    body: dict[str, Any] = {"model": "tiny", "prompt": "x = [", "suffix": "]\n"}
    async with served(completer, model=tiny_backbone_folder) as engine, client_of(engine) as client:
        stream = await client.completions.create(**body, max_tokens=64, stream=True)
        await anext(aiter(stream))
        await stream.close()
        async with engine.http() as http:
            while 'outcome="cancelled"} 1.0' not in (await http.get("/metrics")).text:
                await asyncio.sleep(0.01)
        may_go_on.set()
        while completer.engine._scheduler.fills:
            await asyncio.sleep(0.01)
    assert steps <= 2


async def test_a_prompt_longer_than_the_context_is_reported_or_refused(
    served: Served, tiny_backbone_folder: Path
) -> None:
    body: dict[str, Any] = {"model": "tiny", "prompt": "x = 1\n" * 2000, "max_tokens": 2}
    async with (
        served(partial(load, tiny_backbone_folder), model=tiny_backbone_folder) as engine,
        client_of(engine) as client,
    ):
        answer = await client.completions.create(**body)
        with pytest.raises(openai.BadRequestError, match="more than this model reads"):
            await client.completions.create(**body, extra_body={"truncation": "disabled"})
    assert answer.usage is not None
    assert answer.usage.dropped_tokens > 1000  # type: ignore[attr-defined]


async def test_the_client_chats(served: Served, scripted: Any, chat_checkpoint: Path) -> None:
    completer = scripted("hello you")
    async with served(completer, model=chat_checkpoint) as engine, client_of(engine) as client:
        answer = await client.chat.completions.create(
            model="talker",
            messages=[{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
            max_completion_tokens=5,
        )
        message = answer.choices[0].message
        # A conversation goes on with what came back.
        await client.chat.completions.create(
            model="talker",
            messages=[message.model_dump(), {"role": "user", "content": "more"}],  # type: ignore[list-item]
        )
    assert (message.role, message.content) == ("assistant", "hello you")
    request: InfillRequest = completer.requests[0]
    assert request.prefix == "<s><|system|>be kind<|end|><|user|>hi<|end|><|assistant|>"
    assert "hello you" in completer.requests[1].prefix


async def test_the_client_streams_a_chat(
    served: Served, scripted: Any, chat_checkpoint: Path
) -> None:
    completer = scripted("one two three four")
    text = ""
    async with served(completer, model=chat_checkpoint) as engine, client_of(engine) as client:
        stream = await client.chat.completions.create(
            model="talker", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        async for event in stream:
            text += event.choices[0].delta.content or ""
    assert text == completer.text


async def test_the_client_lists_the_models(served: Served, scripted: Any) -> None:
    async with served(scripted()) as engine, client_of(engine) as client:
        assert [model.id async for model in client.models.list()] == ["scripted"]
        assert (await client.models.retrieve("scripted")).owned_by == "mezzotint"


async def test_the_client_raises_its_own_errors(served: Served, scripted: Any) -> None:
    completer = scripted()
    async with served(completer) as engine, client_of(engine) as client:
        with pytest.raises(openai.BadRequestError, match="presence_penalty") as caught:
            await client.completions.create(model="scripted", prompt="x", presence_penalty=1)
        assert caught.value.param == "presence_penalty"
        with pytest.raises(openai.NotFoundError, match="gpt-4o"):
            await client.completions.create(model="gpt-4o", prompt="x")
        completer.error = EngineOverloadedError("later")
        with pytest.raises(openai.RateLimitError, match="later"):
            await client.completions.create(model="scripted", prompt="x")
        async with client_of(engine, "wrong") as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()


async def test_the_client_tries_again_after_429(served: Served, scripted: Any) -> None:
    class Busy(scripted):
        async def complete(self, request: Any, *, on_frame: Any = None) -> Any:
            self.error = None if self.requests else EngineOverloadedError("later")
            return await super().complete(request, on_frame=on_frame)

    completer = Busy()
    async with served(completer) as engine, client_of(engine) as client:
        patient = client.with_options(max_retries=1)
        answer = await patient.completions.create(model="scripted", prompt="x")
    assert answer.choices[0].text == completer.text
    assert len(completer.requests) == 2
