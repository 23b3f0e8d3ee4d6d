"""The gateway's rules with a handle of ours, and (slow) a real cluster with a killed replica."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.api import (
    Candidate,
    Completer,
    EngineOverloadedError,
    EngineUnavailableError,
    Frame,
    InfillRequest,
    InfillResult,
)
from model.serving.client import EngineClient
from model.serving.ray_app import Cluster, RayCompleter, Replica, deploy, join_cluster, main

ROOT = Path(__file__).parents[3]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray (390 MB) is not installed: pip install 'mezzotint[ray]'",
)


def answer(text: str) -> InfillResult:
    candidate = Candidate(texts=(text,), confidence=0.5)
    return InfillResult(candidates=(candidate,), forwards=1, tokens=1, encoded_tokens=0, ms=1.0)


class DiedError(Exception):
    pass


class FakeResponse:
    def __init__(self, outcome: object) -> None:
        self.outcome = outcome
        self.cancelled = False

    def __await__(self) -> Iterator[Any]:
        yield from asyncio.sleep(0).__await__()
        if isinstance(self.outcome, DiedError):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class FakeHandle:
    """Answers with the outcomes in turn, and notes what it was asked."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = [*outcomes]
        self.sessions: list[str] = []
        self.requests: list[InfillRequest] = []
        self.complete = self

    def options(self, *, session_id: str) -> FakeHandle:
        self.sessions.append(session_id)
        return self

    def remote(self, request: InfillRequest) -> FakeResponse:
        self.requests.append(request)
        return FakeResponse(self.outcomes.pop(0))


async def test_a_request_of_a_dead_replica_is_asked_again_within_its_deadline() -> None:
    handle = FakeHandle(DiedError(), DiedError(), answer("x"))
    result = await RayCompleter(handle, DiedError).complete(
        InfillRequest(prefix="a", deadline_ms=5000)
    )
    assert result.candidates[0].text == "x"
    deadlines = [request.deadline_ms for request in handle.requests]
    assert 5000 >= deadlines[0] >= deadlines[1] >= deadlines[2] > 0


async def test_a_request_that_kills_every_replica_is_given_up() -> None:
    handle = FakeHandle(*(DiedError() for _ in range(9)))
    with pytest.raises(EngineUnavailableError, match="replicas in turn"):
        await RayCompleter(handle, DiedError).complete(InfillRequest(prefix="a"))
    assert handle.outcomes  # it did not try for ever


async def test_an_error_of_the_replica_arrives_as_itself_and_is_not_asked_again() -> None:
    handle = FakeHandle(EngineOverloadedError("too much to do"), answer("x"))
    with pytest.raises(EngineOverloadedError, match="too much to do"):
        await RayCompleter(handle, DiedError).complete(InfillRequest(prefix="a"))


async def test_a_session_is_a_document_of_a_client() -> None:
    handle = FakeHandle(*(answer("x") for _ in range(5)))
    completer = RayCompleter(handle, DiedError)
    for client, document in (("a", "d"), ("a", "d"), ("a", "e"), ("b", "d"), ("ad", "")):
        await completer.complete(InfillRequest(prefix="x", client=client, document=document))
    assert handle.sessions[0] == handle.sessions[1]
    assert len(set(handle.sessions)) == 4
    roaming = RayCompleter(FakeHandle(answer("x")), DiedError, affine=False)
    await roaming.complete(InfillRequest(prefix="x", document="d"))
    assert roaming.handle.sessions == [""]


async def test_a_replicas_frames_come_before_its_answer_and_closing_cancels_it() -> None:
    cancelled = asyncio.Event()

    class Framing:
        async def complete(self, request: InfillRequest, *, on_frame: Any = None) -> InfillResult:
            on_frame(Frame(step=0, slots=(None,)))
            if request.prefix == "wait":
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.set()
            return answer("x")

        async def close(self) -> None: ...

    replica = Replica(Framing)
    replies = [reply async for reply in replica.watch(InfillRequest(prefix="a"))]
    assert replies == [Frame(step=0, slots=(None,)), answer("x")]
    watching = replica.watch(InfillRequest(prefix="wait"))
    assert await anext(watching) == Frame(step=0, slots=(None,))
    await watching.aclose()
    await asyncio.wait_for(cancelled.wait(), 10)


async def test_a_replicas_error_is_a_value() -> None:
    class Refusing:
        async def complete(self, request: InfillRequest, **_: object) -> InfillResult:
            raise EngineOverloadedError("no")

        async def close(self) -> None: ...

    outcome = await Replica(Refusing).complete(InfillRequest(prefix="a"))
    assert isinstance(outcome, EngineOverloadedError)


def test_no_replica_at_all_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--replicas", "0"])
    assert "at least one has to answer" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_it_says_how_to_get_it() -> None:
    with pytest.raises(EngineUnavailableError, match=r"mezzotint\[ray\]"):
        join_cluster(Cluster())


# --- A real cluster -------------------------------------------------------------------------


def loader(directory: Path) -> Callable[[], Completer]:
    """A completer that answers with its process id, and hangs for the prefix `wait`.

    Everything is made in here, for Ray's workers cannot import this file.
    """
    place = str(directory)

    def load() -> Completer:
        import asyncio
        import os
        from pathlib import Path

        from model.api import Candidate, InfillResult

        class WithPid:
            async def complete(self, request: InfillRequest, **_: object) -> InfillResult:
                if request.prefix == "wait":
                    Path(place, "started").touch()
                    try:
                        await asyncio.Event().wait()
                    finally:
                        Path(place, "cancelled").touch()
                await asyncio.sleep(0.02)
                candidate = Candidate(texts=(str(os.getpid()),), confidence=0.5)
                return InfillResult(
                    candidates=(candidate,), forwards=1, tokens=1, encoded_tokens=0, ms=1.0
                )

            async def close(self) -> None: ...

        return WithPid()

    return load


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayCompleter, Path]]:
    """Two replicas in a cluster on this machine."""
    import ray
    from ray import serve

    directory = tmp_path_factory.mktemp("ray")
    # Workers start with the path of this process.
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        runtime_env=environment,
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        yield deploy(Cluster(cpus=0.5), loader(directory)), directory
    finally:
        serve.shutdown()
        ray.shutdown()


async def ask(completer: RayCompleter, document: int) -> str:
    request = InfillRequest(prefix="x", client="c", document=f"d{document}")
    return (await completer.complete(request)).candidates[0].text


async def appearance(path: Path) -> None:
    while not path.exists():
        await asyncio.sleep(0.05)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
async def test_cancelling_reaches_the_replica(replicas: tuple[RayCompleter, Path]):
    completer, directory = replicas
    waiting = asyncio.create_task(completer.complete(InfillRequest(prefix="wait")))
    await asyncio.wait_for(appearance(directory / "started"), 30)
    waiting.cancel()
    await asyncio.wait_for(appearance(directory / "cancelled"), 30)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
async def test_a_document_stays_with_its_replica_and_a_killed_one_loses_no_request(
    replicas: tuple[RayCompleter, Path],
):
    completer, _ = replicas
    documents = range(12)
    before = [{await ask(completer, d) for _ in range(5)} for d in documents]
    assert all(len(pids) == 1 for pids in before)
    victim, survivor = sorted(set.union(*before))  # chance that 12 documents share one: 1 in 2000

    async def type_in(document: int) -> list[str]:
        return [await ask(completer, document) for _ in range(30)]

    typing = asyncio.gather(*map(type_in, documents))
    await asyncio.sleep(0.2)
    os.kill(int(victim), signal.SIGKILL)
    answers = await asyncio.wait_for(typing, 120)
    assert sum(map(len, answers)) == 12 * 30
    for pids, answered in zip(before, answers, strict=True):
        if pids == {survivor}:  # whose replica lived, has it still
            assert set(answered) == {survivor}
        else:
            assert answered[-1] != victim


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
async def test_the_gateway_is_an_engine_like_any_other(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "model.serving.ray_app", "--replicas", "1", "--device", "cpu"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MEZZOTINT_TOKEN": "sesame",
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, stdout=output, stderr=output
        )
    client = EngineClient(f"http://127.0.0.1:{port}", "sesame")
    try:
        state = ""
        while state != "ready":
            assert process.poll() is None, log.read_text()
            try:
                health = await client.health()
            except EngineUnavailableError:
                health = None
            state = health.state if health else ""
            assert state != "failed", health
            await asyncio.sleep(0.2)
        request = InfillRequest(prefix="def add(a, b):\n    return ")
        result = await client.complete(request)
        assert result.candidates[0].text
        frames = list[Frame]()
        assert (await client.complete(request, on_frame=frames.append)).candidates
        assert frames
    finally:
        await client.close()
        process.terminate()
        process.wait(60)
