"""Completions over HTTP, from a scripted completer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from model.api import (
    MOST_TOKENS,
    CheckpointError,
    EngineOverloadedError,
    EngineUnavailableError,
    Frame,
    InvalidRequestError,
    SupersededError,
)
from model.serving import fills
from model.serving.v1.choices import MASKED

PATHS = ("/v1/completions", "/v1/fim/completions")

Served = Callable[..., Any]


@pytest.mark.parametrize("path", PATHS)
async def test_a_completion_has_openais_shape(served: Served, scripted: Any, path: str) -> None:
    async with served(scripted("one two")) as engine:
        answer = (await engine.post(path, prompt="x", suffix="y", model="scripted")).json()
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1.7e9
    assert answer == {
        "object": "text_completion",
        "model": "scripted",
        "choices": [{"index": 0, "text": "one two", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 2,
            "total_tokens": 22,
            "dropped_tokens": 3,
        },
    }


async def test_every_field_arrives_at_the_engine(served: Served, scripted: Any) -> None:
    completer = scripted()
    async with served(completer) as engine:
        await engine.post(
            "/v1/completions",
            prompt="before",
            suffix="after",
            max_tokens=7,
            temperature=0.5,
            top_p=0.9,
            seed=3,
            n=2,
            user="me",
            language="python",
            truncation="disabled",
        )
    assert [request.seed for request in completer.requests] == [3, 4]
    request = completer.requests[0]
    assert (request.prefix, request.suffix, request.language) == ("before", "after", "python")
    assert (request.max_new_tokens, request.temperature, request.top_p) == (7, 0.5, 0.9)
    assert request.drawn
    assert request.must_fit
    assert request.client == "http:me"
    assert request.candidates == 1
    assert not request.special_tokens_in_prefix


async def test_by_default_the_likeliest_text_is_taken(served: Served, scripted: Any) -> None:
    completer = scripted()
    async with served(completer) as engine:
        await engine.post("/v1/completions", prompt="x")
        await engine.post("/v1/fim/completions", prompt="x")
    assert [request.drawn for request in completer.requests] == [False, False]
    assert [request.max_new_tokens for request in completer.requests] == [16, 512]


async def test_all_that_a_program_sends_is_read(served: Served, scripted: Any) -> None:
    completer = scripted()
    async with served(completer) as engine:
        for suffix in ({}, {"suffix": None}, {"suffix": ""}):
            await engine.post("/v1/completions", prompt="x", **suffix)
    for request in completer.requests:
        assert request.prefix_tokens == request.suffix_tokens == MOST_TOKENS


async def test_several_prompts_have_n_choices_each(served: Served, scripted: Any) -> None:
    completer = scripted()
    async with served(completer) as engine:
        answer = (await engine.post("/v1/completions", prompt=["a", "b"], n=2)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert sorted(request.prefix for request in completer.requests) == ["a", "a", "b", "b"]
    assert answer["usage"]["prompt_tokens"] == 40  # each prompt once
    assert answer["usage"]["completion_tokens"] == 12


async def test_windows_line_ends_come_back_as_such(served: Served, scripted: Any) -> None:
    completer = scripted("a\nb c")
    async with served(completer) as engine:
        body = {"prompt": "x\r\n", "suffix": "\r\ny", "stop": "c\r\n"}
        answer = (await engine.post("/v1/completions", **body)).json()
    assert completer.requests[0].prefix == "x\n"
    assert completer.requests[0].suffix == "\ny"
    assert answer["choices"][0]["text"] == "a\r\nb c"


async def test_text_ends_before_a_stop_and_the_engine_with_it(
    served: Served, scripted: Any
) -> None:
    completer = scripted("one two three four", canvas_slots=2)
    completer.frames_before_hanging = 4
    async with served(completer) as engine:
        answer = (await engine.post("/v1/completions", prompt="x", stop=["three"])).json()
        await asyncio.wait_for(completer.cancelled.wait(), 5)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("one two ", "stop")
    assert answer["usage"]["prompt_tokens"] == 20
    assert answer["usage"]["completion_tokens"] in (3, 4)


async def test_text_without_an_end_has_reached_its_length(served: Served, scripted: Any) -> None:
    completer = scripted()
    completer.finished = False
    async with served(completer) as engine:
        answer = (await engine.post("/v1/completions", prompt="x")).json()
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("canvas_slots", [2, 64])
async def test_streamed_deltas_make_up_the_text_and_none_is_taken_back(
    served: Served, scripted: Any, canvas_slots: int
) -> None:
    completer = scripted("one two three four five", canvas_slots=canvas_slots)
    async with served(completer) as engine:
        events = await engine.events("/v1/completions", prompt="x")
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == completer.text
    assert len(choices) > 2
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == "stop"
    assert len({event["id"] for event in events}) == 1
    assert all("usage" not in event for event in events)


async def test_text_that_another_candidate_may_replace_is_not_sent(
    served: Served, scripted: Any
) -> None:
    completer = scripted("one two three")
    completer.text_stays = False
    async with served(completer) as engine:
        deltas = await engine.events("/v1/completions", prompt="x", stop="none")
        states = await engine.events("/v1/completions", prompt="x", diffusing=True)
    assert [event["choices"][0]["text"] for event in deltas] == ["", completer.text]
    assert states[0]["choices"][0]["text"] == f"one{MASKED}{MASKED}"


async def test_a_stream_withholds_what_may_become_a_stop(served: Served, scripted: Any) -> None:
    async with served(scripted("one two", canvas_slots=1)) as engine:
        events = await engine.events("/v1/completions", prompt="x", stop="e two")
    assert "".join(event["choices"][0]["text"] for event in events) == "on"


async def test_the_usage_of_a_stream_comes_last_when_asked_for(
    served: Served, scripted: Any
) -> None:
    async with served(scripted()) as engine:
        body = {"prompt": "x", "n": 2, "stream_options": {"include_usage": True}}
        events = await engine.events("/v1/completions", **body)
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["prompt_tokens"] == 20
    assert events[-1]["usage"]["completion_tokens"] == 6


async def test_the_choices_of_a_stream_are_told_apart(served: Served, scripted: Any) -> None:
    completer = scripted("one two three")
    async with served(completer) as engine:
        events = await engine.events("/v1/completions", prompt="x", n=3)
    for index in range(3):
        pieces = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert "".join(piece["text"] for piece in pieces) == completer.text


@pytest.mark.parametrize("path", PATHS)
async def test_a_diffusing_stream_sends_the_whole_state_after_every_step(
    served: Served, scripted: Any, path: str
) -> None:
    async with served(scripted("one two three")) as engine:
        events = await engine.events(path, prompt="x", diffusing=True)
    assert [event["choices"][0]["text"] for event in events] == [
        f"one{MASKED}{MASKED}",
        f"one{MASKED} three",
        "one two three",
        "one two three",
    ]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_cancels_the_engine(
    served: Served, scripted: Any, *, stream: bool
) -> None:
    completer = scripted()
    completer.frames_before_hanging = 1
    async with served(completer) as engine, engine.http() as http:
        body = {"prompt": "x", "stream": stream}
        asking = asyncio.create_task(http.post("/v1/completions", json=body))
        while not completer.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait_for(completer.cancelled.wait(), 5)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequestError("no"), 400, "invalid_request_error"),
        (EngineOverloadedError("no"), 429, "rate_limit_error"),
        (SupersededError("no"), 409, "superseded_error"),
        (CheckpointError("no"), 503, "server_error"),
        (EngineUnavailableError("no"), 503, "server_error"),
        (ValueError("a secret"), 500, "server_error"),
    ],
)
async def test_an_error_of_the_engine_has_a_status_and_an_envelope(
    served: Served, scripted: Any, error: Exception, status: int, kind: str, *, stream: bool
) -> None:
    completer = scripted()
    completer.error = error
    async with served(completer) as engine:
        response = await engine.post("/v1/completions", prompt="x", stream=stream)
    envelope = response.json()["error"]
    assert (response.status_code, envelope["type"]) == (status, kind)
    assert set(envelope) == {"message", "type", "param", "code"}
    assert "secret" not in envelope["message"]
    assert ("retry-after" in response.headers) == (status == 429)


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(
    served: Served, scripted: Any
) -> None:
    class Breaking(scripted):
        async def complete(self, request: Any, *, on_frame: Any = None) -> Any:
            on_frame(self.frames()[0])
            raise EngineUnavailableError("gone")

    async with served(Breaking()) as engine:
        response = await engine.post("/v1/completions", prompt="x", stream=True)
    *_, last = [line for line in response.text.split("\n\n") if line]
    assert '"message":"gone"' in last
    assert "[DONE]" not in last


async def test_more_requests_than_may_run_are_told_to_come_again(
    served: Served, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fills.Fills.__init__, "__kwdefaults__", {"max_fills": 2})
    completer = scripted()
    completer.frames_before_hanging = 1
    async with served(completer) as engine, engine.http() as http:
        body = {"prompt": "x", "stream": True}
        asking = [asyncio.create_task(http.post("/v1/completions", json=body)) for _ in range(2)]
        while len(completer.requests) < 2:
            await asyncio.sleep(0.01)
        for path in (*PATHS, "/v1/infill"):
            field = "prefix" if path == "/v1/infill" else "prompt"
            response = await http.post(path, json={field: "x"})
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        completer.frames_before_hanging = None
        while (await http.post("/v1/completions", json={"prompt": "x"})).status_code == 429:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": [1, 2]}, 400, "prompt[0]"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ["x"] * 9, "n": 2}, 400, "prompt"),
        ({"prompt": "x", "suffix": 1}, 400, "suffix"),
        ({"prompt": "x", "truncation": "middle"}, 400, "truncation"),
        ({"prompt": "x", "messages": []}, 400, "messages"),
        ({"prompt": "x", "logprobs": 3}, 400, "logprobs"),
        ({"prompt": "x", "model": "gpt-4o"}, 404, "model"),
    ],
)
async def test_a_wrong_request_is_refused_by_the_name_of_its_field(
    served: Served, scripted: Any, body: dict[str, Any], status: int, param: str
) -> None:
    completer = scripted()
    async with served(completer) as engine:
        response = await engine.post("/v1/completions", **body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    assert completer.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/completions", 405), ("POST", "/v1/nothing", 404), ("POST", "/v1/models", 405)],
)
async def test_wrong_ways_below_v1_get_openais_envelope(
    served: Served, scripted: Any, method: str, path: str, status: int
) -> None:
    async with served(scripted()) as engine, engine.http() as http:
        response = await http.request(method, path)
    assert response.status_code == status
    assert path in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_a_request_without_the_token_gets_openais_envelope(
    served: Served, scripted: Any
) -> None:
    async with served(scripted()) as engine, httpx2.AsyncClient(trust_env=False) as http:
        response = await http.post(f"{engine.url}/v1/completions", json={"prompt": "x"})
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


async def test_a_model_is_found_by_its_name(served: Served, scripted: Any) -> None:
    async with served(scripted()) as engine, engine.http() as http:
        listed = (await http.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["scripted"]
        assert (await http.get("/v1/models/scripted")).json() == listed["data"][0]
        missing = await http.get("/v1/models/org/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_text_that_changes_after_it_was_sent_ends_the_stream(
    served: Served, scripted: Any
) -> None:
    class Fickle(scripted):
        def frames(self) -> Any:
            return [Frame(step=1, slots=("other", None), text="other", text_stays=True)]

    async with served(Fickle()) as engine:
        response = await engine.post("/v1/completions", prompt="x", stream=True)
    assert "changed text" in response.text
    assert "[DONE]" not in response.text


async def test_a_bug_of_the_server_gets_an_envelope_without_its_text(
    served: Served, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a secret")

    monkeypatch.setattr("model.serving.v1.answer._head", broken)
    async with served(scripted()) as engine:
        response = await engine.post("/v1/completions", prompt="x")
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "LookupError" in response.text
    assert "secret" not in response.text
