"""An engine with a scripted completer, served over HTTP from the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from model.api import (
    Candidate,
    CheckpointError,
    Completer,
    ContextSize,
    Frame,
    FrameListener,
    InfillRequest,
    InfillResult,
)
from model.serving import http_server
from model.serving.http_server import Access, serve
from model.serving.lifetime import Lifetime

TOKEN = "sesame"


class Scripted:
    """Writes `text` for every request, and is denoised from its end to its beginning but for the
    first slot: the order in which text deltas have to wait longest."""

    def __init__(self, text: str = "one two three", *, canvas_slots: int = 64) -> None:
        self.text = text
        self.finished = True
        self.text_stays = True
        self.error: Exception | None = None
        self.requests: list[InfillRequest] = []
        self.frames_before_hanging: int | None = None
        """After so many frames it waits for ever."""
        self.cancelled = asyncio.Event()
        self._canvas_slots = canvas_slots

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        try:
            frames = self.frames()
            for frame in frames if on_frame else []:
                on_frame(frame)
                await asyncio.sleep(0)
            if self.frames_before_hanging is not None:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        candidate = Candidate(texts=(self.text,), confidence=0.5, finished=self.finished)
        return InfillResult(
            candidates=(candidate,),
            forwards=2,
            tokens=len(self._slots()),
            encoded_tokens=4,
            ms=5.0,
            context=ContextSize(tokens=20, dropped=3),
        )

    def _slots(self) -> list[str]:
        words = self.text.split(" ")
        return [word if index == 0 else " " + word for index, word in enumerate(words)]

    def frames(self) -> list[Frame]:
        """Every canvas in turn, each with its first slot at once and then from the right."""
        frames: list[Frame] = []
        slots, earlier = self._slots(), ""
        for start in range(0, len(slots), self._canvas_slots):
            canvas = slots[start : start + self._canvas_slots]
            for masked_until in range(len(canvas), 0, -1):
                state = [
                    slot if i == 0 or i >= masked_until else None for i, slot in enumerate(canvas)
                ]
                left = canvas if masked_until == 1 else canvas[:1]
                frames.append(
                    Frame(
                        step=len(frames) + 1,
                        slots=tuple(state),
                        tokens=start + sum(slot is not None for slot in state),
                        text=earlier + "".join(left),
                        text_stays=self.text_stays,
                        context=ContextSize(tokens=20, dropped=3),
                    )
                )
            earlier += "".join(canvas)
        return frames[: self.frames_before_hanging]

    async def close(self) -> None:
        pass


class _Stoppable(Lifetime):
    over = False

    def reason_to_leave(self, *, failed: bool) -> str | None:
        return "the test is over" if self.over else None


class Engine:
    """A served completer, and how to talk to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.token = TOKEN
        self.headers = {"authorization": f"Bearer {TOKEN}"}

    def http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            base_url=self.url, headers=self.headers, trust_env=False, timeout=30
        )

    async def post(self, path: str, **body: Any) -> httpx2.Response:
        async with self.http() as http:
            return await http.post(path, json=body)

    async def events(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream that ends as it should."""
        response = await self.post(path, stream=True, **body)
        assert response.headers["content-type"].startswith("text/event-stream"), response.text
        lines = [line for line in response.text.split("\n\n") if line]
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Engine]]


@contextlib.asynccontextmanager
async def _serve(
    completer: Completer | Callable[[], Completer] | Mapping[str, Completer],
    *,
    model: str | Path = "scripted",
) -> AsyncIterator[Engine]:
    """Serves a completer, what makes one, or that of a model out of several."""

    def load(name: str) -> Completer:
        if isinstance(completer, Mapping):
            if name not in completer:
                raise CheckpointError(f"there is no checkpoint directory {name}")
            return completer[name]
        return completer() if callable(completer) else completer

    listener = socket.create_server(("127.0.0.1", 0))
    lifetime = _Stoppable()
    server = asyncio.create_task(
        serve(
            listener,
            access=Access(token=TOKEN),
            load=load,
            model=str(model),
            lifetime=lifetime,
        )
    )
    try:
        yield Engine(f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        lifetime.over = True
        await server


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """`async with served(completer) as engine`: an `Engine`."""
    monkeypatch.setattr(http_server, "_TICK_S", 0.01)  # it ends with the test at once
    return _serve


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def chat_checkpoint(tmp_path: Path) -> Path:
    """A checkpoint directory that has nothing but a chat template."""
    directory = tmp_path / "talker"
    directory.mkdir()
    config = {
        "chat_template": CHAT_TEMPLATE,
        "bos_token": {"content": "<s>"},
        "added_tokens_decoder": {"7": {"content": "<|end|>", "special": True}},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
