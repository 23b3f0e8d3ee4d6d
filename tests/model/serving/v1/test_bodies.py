"""Bodies from nowhere: whatever is sent, the answer is one or a refusal, never a crash."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.api import InfillRequest
from model.serving.v1.chat import APPLY, CHAT, EDIT
from model.serving.v1.chat import read_call as read_chat
from model.serving.v1.completions import COMPLETION_DEFAULTS
from model.serving.v1.completions import read_call as read_completion
from model.serving.v1.errors import ApiError
from model.serving.v1.fields import NEUTRAL, Options
from model.serving.v1.infill import read_request
from model.serving.v1.served_model import ServedModel

HALF_A_CHARACTER = "\ud83d"
SERVED = ServedModel(name="it", checkpoint=Path("nowhere"))

names = st.sampled_from(
    [
        *("prompt", "suffix", "messages", "language", "truncation", "diffusing", "stream_options"),
        *(field.name for field in dataclasses.fields(Options)),
        *(field.name for field in dataclasses.fields(InfillRequest)),
        *NEUTRAL,
    ]
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 20),
    st.floats(),
    st.sampled_from(["", "x", "it", "user", "text", "disabled", 10**400, HALF_A_CHARACTER]),
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "include_usage", "x"]), inner
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(fields=st.dictionaries(names | st.text(max_size=3), values, max_size=6))
def test_a_body_is_read_or_refused(fields: dict[str, Any]) -> None:
    body = json.dumps({"prompt": "x"} | fields).encode()
    with contextlib.suppress(ApiError):
        call = read_completion(body, SERVED, COMPLETION_DEFAULTS)
        assert len(call.requests) >= 1
    for route in (CHAT, EDIT, APPLY):
        with pytest.raises(ApiError):  # there is no template
            read_chat(body, SERVED, route)
    with contextlib.suppress(ApiError):
        read_request(json.dumps({"prefix": "x"} | fields).encode(), SERVED)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x", HALF_A_CHARACTER: 1}),
        ("/v1/completions", {"prompt": "x", "model": HALF_A_CHARACTER}),
        ("/v1/chat/completions", {"messages": [{"role": HALF_A_CHARACTER, "content": ""}]}),
        ("/v1/infill", {"prefix": "x", HALF_A_CHARACTER: 1}),
    ],
)
async def test_half_a_character_comes_back_in_an_error(
    served: Callable[..., Any], scripted: Any, path: str, body: dict[str, Any]
) -> None:
    async with served(scripted()) as engine, engine.http() as http:
        # As JSON escapes it; the client's own encoder would not.
        response = await http.post(path, content=json.dumps(body))
    assert response.status_code in (400, 404)
    assert "\\ud83d" in response.text


@pytest.mark.parametrize("size", [4 * 2**20, 4 * 2**20 + 1])
async def test_a_body_has_a_limit(served: Callable[..., Any], scripted: Any, size: int) -> None:
    async with served(scripted()) as engine, engine.http() as http:
        body = b'{"prompt": "x"}'.ljust(size)
        response = await http.post("/v1/completions", content=body)
    assert response.status_code == (200 if size == 4 * 2**20 else 413)
    if response.status_code == 413:
        assert response.json()["error"]["type"] == "invalid_request_error"


async def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(
    served: Callable[..., Any], scripted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    completer = scripted()
    async with served(completer) as engine:
        port = int(engine.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n"
        writer.write(f"{head}authorization: Bearer {engine.token}\r\n\r\n{{".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await engine.post("/v1/completions", prompt="x")).status_code == 200
    assert len(completer.requests) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
