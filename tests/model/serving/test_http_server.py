"""The server's rules, in this process: on loopback, no engine process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from model.api import (
    CheckpointError,
    Completer,
    CompletionError,
    EngineOverloadedError,
    EngineUnavailableError,
    Frame,
    InfillRequest,
    InvalidRequestError,
)
from model.serving.client import EngineClient
from model.serving.http_server import MAX_BODY_BYTES, Access, EngineServer, serve
from model.serving.lifetime import FIRST_LEASE_S, GRACE_S, Lifetime
from model.serving.model_host import ModelHost
from model.serving.protocol import decode_reply
from model.serving.v1.served_model import ServedModel

spec = importlib.util.spec_from_file_location(
    "fake_engine", Path(__file__).with_name("fake_engine.py")
)
assert spec is not None
assert spec.loader is not None
fake_engine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake_engine)

TOKEN = "sesame"
BODY = json.dumps({"protocol": 7, "request": {"prefix": "x"}})


class Stoppable(Lifetime):
    def __init__(self) -> None:
        super().__init__(leased=True)
        self.over = False
        self.leased_once = asyncio.Event()

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        with super().lease():
            self.leased_once.set()
            yield

    def reason_to_leave(self, *, failed: bool) -> str | None:
        return "the test is over" if self.over else None


@contextlib.asynccontextmanager
async def running(
    load: Callable[[str], Completer] = lambda _: fake_engine.FakeCompleter(),
    lifetime: Stoppable | None = None,
) -> AsyncIterator[str]:
    """An engine served from this event loop; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    lifetime = lifetime or Stoppable()
    server = asyncio.create_task(
        serve(listener, access=Access(token=TOKEN), load=load, model="fake", lifetime=lifetime)
    )
    try:
        yield url
    finally:
        lifetime.over = True
        await server


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[EngineClient]:
    client = EngineClient(url, TOKEN)
    try:
        yield client
    finally:
        await client.close()


async def appearance(path: Path) -> None:
    while not path.exists():
        await asyncio.sleep(0.01)


async def post(
    url: str, content: str | bytes, authorization: str = f"Bearer {TOKEN}"
) -> httpx2.Response:
    async with httpx2.AsyncClient(trust_env=False) as http:
        headers = {"authorization": authorization.encode("latin-1")}
        return await http.post(f"{url}/infill", content=content, headers=headers)


async def test_an_infill_comes_back_with_its_frames() -> None:
    frames: list[Frame] = []
    async with running() as url, client_of(url) as client:
        request = InfillRequest(prefix="x", typed="ab")
        result = await client.complete(request, on_frame=frames.append)
    assert result.candidates[0].text.startswith("ab")
    assert frames == [Frame(step=step, slots=(None, "é", "")) for step in range(2)]


async def test_frames_are_sent_only_when_asked_for() -> None:
    async with running() as url:
        response = await post(url, BODY)
    assert [list(json.loads(line)) for line in response.text.splitlines()] == [["result"]]


async def test_the_completers_error_arrives_as_itself() -> None:
    async with running() as url, client_of(url) as client:
        with pytest.raises(EngineOverloadedError, match="too much to do"):
            await client.complete(InfillRequest(prefix="overload"))


async def test_a_bug_in_the_completer_quotes_nothing_of_the_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as url, client_of(url) as client:
        with pytest.raises(CompletionError, match="ValueError") as caught:
            await client.complete(InfillRequest(prefix="bug"))
    assert "the request was" not in str(caught.value)
    assert any(record.levelno == logging.ERROR for record in caplog.records)


async def test_cancelling_a_complete_cancels_the_completer(tmp_path: Path) -> None:
    async with running() as url, client_of(url) as client:
        request = InfillRequest(prefix="wait", suffix=str(tmp_path))
        completing = asyncio.create_task(client.complete(request))
        await asyncio.wait_for(appearance(tmp_path / "started"), 5)
        completing.cancel()
        await asyncio.wait_for(appearance(tmp_path / "cancelled"), 5)
        with pytest.raises(asyncio.CancelledError):
            await completing


async def test_closing_the_client_cancels_the_completer(tmp_path: Path) -> None:
    async with running() as url, client_of(url) as client:
        request = InfillRequest(prefix="wait", suffix=str(tmp_path))
        completing = asyncio.create_task(client.complete(request))
        await asyncio.wait_for(appearance(tmp_path / "started"), 5)
        await client.close()
        with pytest.raises(EngineUnavailableError):
            await asyncio.wait_for(completing, 5)
        await asyncio.wait_for(appearance(tmp_path / "cancelled"), 5)
        with pytest.raises(EngineUnavailableError, match="closed"):
            await client.complete(request)


async def test_a_request_waits_until_the_model_is_loaded() -> None:
    may_load = threading.Event()

    def load(_: str) -> Completer:
        assert may_load.wait(10)
        return fake_engine.FakeCompleter()

    async with running(load) as url, client_of(url) as client:
        completing = asyncio.create_task(client.complete(InfillRequest(prefix="x")))
        assert (await client.health()).state == "loading"
        assert not completing.done()
        may_load.set()
        await asyncio.wait_for(completing, 5)
        assert (await client.health()).state == "ready"


async def test_what_a_completer_does_without_shows_in_the_health() -> None:
    def load(_: str) -> Completer:
        completer = fake_engine.FakeCompleter()
        completer.problems = ["no kernels"]  # type: ignore[attr-defined]
        return completer

    async with running(load) as url, client_of(url) as client:
        await client.complete(InfillRequest(prefix="x"))
        health = await client.health()
        assert (health.state, health.message) == ("ready", "serving fake; no kernels")


async def test_a_failed_load_is_told_to_whoever_asks() -> None:
    def load(_: str) -> Completer:
        raise CheckpointError("no such checkpoint")

    async with running(load) as url, client_of(url) as client:
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            await client.complete(InfillRequest(prefix="x"))
        health = await client.health()
        assert (health.state, health.message) == ("failed", "no such checkpoint")


async def test_without_leases_a_failed_load_ends_the_server() -> None:
    def load(_: str) -> Completer:
        raise CheckpointError("no such checkpoint")

    listener = socket.create_server(("127.0.0.1", 0))
    serving = serve(
        listener, access=Access(token=TOKEN), load=load, model="fake", lifetime=Lifetime()
    )
    assert isinstance(await asyncio.wait_for(serving, 5), CheckpointError)


async def test_a_failed_engine_leaves_once_its_health_was_asked_for() -> None:
    def load(_: str) -> Completer:
        raise CheckpointError("no such checkpoint")

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    lifetime = Lifetime(leased=True)
    server = asyncio.create_task(
        serve(listener, access=Access(token=TOKEN), load=load, model="fake", lifetime=lifetime)
    )
    async with client_of(url) as client:
        while (await client.health()).state != "failed":
            await asyncio.sleep(0.01)
    assert isinstance(await asyncio.wait_for(server, 5), CheckpointError)


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", "Basic sesame", "é"])
async def test_a_wrong_token_is_refused(authorization: str) -> None:
    async with running() as url:
        response = await post(url, BODY, authorization=authorization)
    assert response.status_code == 401
    assert "MEZZOTINT_TOKEN" in response.json()["error"]["message"]


async def test_the_client_says_that_its_token_is_wrong() -> None:
    async with running() as url:
        client = EngineClient(url, "wrong")
        for attempt in (client.complete(InfillRequest(prefix="x")), client.hold_lease()):
            with pytest.raises(InvalidRequestError, match="token"):
                await attempt
        await client.close()


async def test_health_needs_no_token() -> None:
    async with running() as url, httpx2.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{url}/health")).json()["model"] == "fake"


@pytest.mark.parametrize("path", ["health", "lease", "infill"])
async def test_a_web_page_is_refused(path: str) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "origin": "http://127.0.0.1:3000"}
    async with running() as url, httpx2.AsyncClient(trust_env=False) as http:
        response = await http.get(f"{url}/{path}", headers=headers)
    assert response.status_code == 403


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("{", "not JSON"),
        ('{"protocol": 7, "request": {}}', "lacks the field 'prefix'"),
        ('{"protocol": 7, "request": {"prefix": "", "steps": 0}}', "steps is 0"),
    ],
)
async def test_a_malformed_body_gets_a_sentence_and_400(body: str, sentence: str) -> None:
    async with running() as url:
        response = await post(url, body)
    assert response.status_code == 400
    assert sentence in response.json()["error"]["message"]


async def test_a_body_over_the_limit_is_refused() -> None:
    async with running() as url:
        response = await post(url, b"x" * (MAX_BODY_BYTES + 1))
    assert response.status_code == 413


async def test_a_lease_ends_in_peace_when_the_engine_leaves() -> None:
    async with contextlib.AsyncExitStack() as stack:
        lifetime = Stoppable()
        url = await stack.enter_async_context(running(lifetime=lifetime))
        client = await stack.enter_async_context(client_of(url))
        lease = asyncio.create_task(client.hold_lease())
        await asyncio.wait_for(lifetime.leased_once.wait(), 5)
        lifetime.over = True
        await asyncio.wait_for(lease, 5)


async def test_an_infill_ends_with_an_error_when_the_engine_leaves(tmp_path: Path) -> None:
    lifetime = Stoppable()
    async with running(lifetime=lifetime) as url, client_of(url) as client:
        request = InfillRequest(prefix="wait", suffix=str(tmp_path))
        completing = asyncio.create_task(client.complete(request))
        await asyncio.wait_for(appearance(tmp_path / "started"), 5)
        lifetime.over = True
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            await asyncio.wait_for(completing, 5)


async def test_an_engine_that_is_leaving_is_none() -> None:
    host = ModelHost(lambda _: fake_engine.FakeCompleter(), model="fake")
    await host.completer()
    engine = EngineServer(host, Lifetime(), Access(token=TOKEN), ServedModel.of("fake"))
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=engine.app),
        base_url="http://localhost",
        headers={"authorization": f"Bearer {TOKEN}"},
    ) as http:
        assert (await http.get("/health")).status_code == 200
        engine.leave()
        health = await http.get("/health")
        infill = await http.post("/infill", content=BODY)
        completion = await http.post("/v1/completions", json={"prompt": "x"})
    assert health.status_code == completion.status_code == 503
    for line in (health.text, infill.text):
        assert isinstance(decode_reply(line), EngineUnavailableError)


async def test_a_lease_breaks_when_the_engine_vanishes() -> None:
    async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"alive": true}\n')
        writer.close()

    async with await asyncio.start_server(vanish, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with client_of(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(EngineUnavailableError):
                await client.hold_lease()


async def test_another_program_on_the_port_is_told_from_an_engine() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with client_of(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(EngineUnavailableError, match="no engine"):
                await client.complete(InfillRequest(prefix="x"))


@pytest.mark.parametrize("address", ["", "localhost:80", "ftp://x", "http://[::1"])
def test_an_address_of_no_known_form_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequestError, match="address"):
        EngineClient(address, TOKEN)


async def test_nobody_listening_is_an_unavailable_engine(tmp_path: Path) -> None:
    async with client_of(f"unix:{tmp_path}/none.sock") as client:
        with pytest.raises(EngineUnavailableError, match="does not answer"):
            await client.complete(InfillRequest(prefix="x"))


async def test_a_proxy_in_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with running() as url, client_of(url) as client:
        await client.complete(InfillRequest(prefix="x"))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_leased_engine_leaves_a_while_after_its_last_lease() -> None:
    clock = Clock()
    lifetime = Lifetime(leased=True, clock=clock)
    with lifetime.lease():
        with lifetime.lease():
            clock.now += 1000
        clock.now += 1000
        assert lifetime.reason_to_leave(failed=False) is None
    clock.now += GRACE_S - 0.1
    assert lifetime.reason_to_leave(failed=False) is None
    with lifetime.lease():
        clock.now += 1000
    assert lifetime.reason_to_leave(failed=False) is None
    clock.now += GRACE_S
    assert lifetime.reason_to_leave(failed=False) == "its last client has gone"


def test_a_leased_engine_leaves_when_nobody_comes() -> None:
    clock = Clock()
    lifetime = Lifetime(leased=True, clock=clock)
    clock.now += FIRST_LEASE_S - 0.1
    assert lifetime.reason_to_leave(failed=False) is None
    clock.now += 0.1
    assert lifetime.reason_to_leave(failed=False) == "nobody took a lease"


def test_a_failed_engine_leaves_once_somebody_has_been_told() -> None:
    lifetime = Lifetime(leased=True, clock=Clock())
    assert lifetime.reason_to_leave(failed=True) is None
    with lifetime.lease():
        assert lifetime.reason_to_leave(failed=True) is None
    assert lifetime.reason_to_leave(failed=True) is not None


def test_an_engine_without_leases_stays() -> None:
    clock = Clock()
    lifetime = Lifetime(clock=clock)
    clock.now += 1e9
    assert lifetime.reason_to_leave(failed=False) is None


def test_an_idle_engine_leaves_under_its_leases_but_not_during_an_infill() -> None:
    clock = Clock()
    lifetime = Lifetime(leased=True, idle_s=60, clock=clock)
    with lifetime.lease():
        with lifetime.infill():
            clock.now += 61
            assert lifetime.reason_to_leave(failed=False) is None
        clock.now += 59
        assert lifetime.reason_to_leave(failed=False) is None
        clock.now += 1
        assert lifetime.reason_to_leave(failed=False) == "it had nothing to do"


def test_who_takes_a_lease_finds_an_idle_engine_in_place() -> None:
    clock = Clock()
    lifetime = Lifetime(leased=True, idle_s=20, clock=clock)
    clock.now += 19
    with lifetime.lease():
        clock.now += 19
        assert lifetime.reason_to_leave(failed=False) is None
        clock.now += 1
        assert lifetime.reason_to_leave(failed=False) == "it had nothing to do"
