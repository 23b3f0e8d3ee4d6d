"""`python -m model.serving` as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from model import api, engines
from model.serving.__main__ import parse_args

TLS = Path(__file__).with_name("tls")
"""A certificate for localhost and its key: for these tests, and of no use elsewhere."""
FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts fake engines, and sees to it that none outlives the test."""
    engines: list[subprocess.Popen[str]] = []

    def start(*flags: str | Path, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, FAKE_ENGINE, *flags]
        environment = os.environ | environment
        engine = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.kill()
        engine.communicate()


@pytest.fixture
def endpoint(tmp_path: Path) -> Path:
    return tmp_path / "private" / "engine.json"


def description(endpoint: Path) -> dict[str, str]:
    deadline = time.monotonic() + 10
    while not endpoint.exists():
        assert time.monotonic() < deadline, "the engine never announced itself"
        time.sleep(0.02)
    return json.loads(endpoint.read_text())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def candidate(socket: str, token: str) -> str:
    connection = engines.connect(socket, token)
    try:
        result = await connection.complete(api.InfillRequest(prefix="x"))
    finally:
        await connection.close()
    return result.candidates[0].text


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_only_its_user_can_open_the_engine(start: Start, endpoint: Path) -> None:
    start("--endpoint", endpoint)
    address = description(endpoint)["socket"]
    assert address == f"unix:{endpoint.with_suffix('.sock')}"
    assert mode(endpoint.parent) == 0o700
    assert mode(endpoint) == 0o600
    assert mode(endpoint.with_suffix(".sock")) == 0o600


def test_the_engine_leaves_nothing_but_its_lock_behind(start: Start, endpoint: Path) -> None:
    engine = start("--endpoint", endpoint)
    description(endpoint)
    engine.terminate()
    assert engine.wait(10) == 0
    assert {path.name for path in endpoint.parent.iterdir()} <= {"engine.lock"}


def test_of_two_racing_engines_one_serves_and_the_other_leaves_quietly(
    start: Start, endpoint: Path
) -> None:
    racers = [start("--endpoint", endpoint) for _ in range(2)]
    pid = description(endpoint)["pid"]
    loser = next(racer for racer in racers if racer.pid != pid)
    assert loser.wait(10) == 0
    assert next(racer for racer in racers if racer.pid == pid).poll() is None


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
async def test_what_a_killed_engine_left_is_in_nobodys_way(start: Start, endpoint: Path) -> None:
    first = start("--endpoint", endpoint)
    description(endpoint)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start("--endpoint", endpoint)
    while description(endpoint)["pid"] != second.pid:
        await asyncio.sleep(0.02)
    found = description(endpoint)
    assert await candidate(found["socket"], found["token"]) == str(second.pid)


@pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")
async def test_a_path_too_long_for_a_socket_still_gets_a_private_one(
    start: Start, tmp_path: Path
) -> None:
    endpoint = tmp_path / ("long" * 30) / "engine.json"
    temporary = tmp_path / "t"
    temporary.mkdir()
    engine = start("--endpoint", endpoint, TMPDIR=str(temporary))
    found = description(endpoint)
    socket_path = Path(found["socket"].removeprefix("unix:"))
    assert len(os.fsencode(socket_path)) <= 100
    assert (mode(socket_path), mode(socket_path.parent)) == (0o600, 0o700)
    assert await candidate(found["socket"], found["token"]) == str(engine.pid)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_a_directory_that_others_can_read_is_refused(start: Start, endpoint: Path) -> None:
    endpoint.parent.mkdir(mode=0o755)
    engine = start("--endpoint", endpoint)
    _, log = engine.communicate(timeout=10)
    assert engine.returncode == 1
    assert f"{endpoint.parent} must be a directory of yours with mode 0700" in log
    assert not endpoint.exists()


async def test_a_network_engine_prints_the_token_it_made(start: Start) -> None:
    engine = start("--port", "0", MEZZOTINT_TOKEN="")
    assert engine.stderr is not None
    token = engine.stderr.readline().strip().removeprefix("MEZZOTINT_TOKEN=")
    url = engine.stderr.readline().split()[-1]
    assert await candidate(url, token) == str(engine.pid)


async def test_a_network_engine_takes_its_token_from_the_environment(start: Start) -> None:
    engine = start("--port", "0", MEZZOTINT_TOKEN="sesame")
    assert engine.stderr is not None
    announcement = engine.stderr.readline()
    assert "sesame" not in announcement
    assert await candidate(announcement.split()[-1], "sesame") == str(engine.pid)


def test_a_network_engine_without_a_model_ends_with_a_sentence(start: Start) -> None:
    engine = start("--port", "0", "--model", "broken", MEZZOTINT_TOKEN="sesame")
    _, log = engine.communicate(timeout=10)
    assert engine.returncode == 1
    assert "broken holds no checkpoint; download one" in log
    assert "Traceback" not in log


def test_idle_unloading_needs_somebody_to_start_the_engine_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--idle-unload-minutes", "5"])
    assert "--endpoint" in capsys.readouterr().err


def test_a_port_in_use_is_one_sentence(start: Start) -> None:
    first = start("--port", "0", MEZZOTINT_TOKEN="sesame")
    assert first.stderr is not None
    port = first.stderr.readline().rsplit(":", 1)[-1].strip()
    second = start("--port", port, MEZZOTINT_TOKEN="sesame")
    _, log = second.communicate(timeout=10)
    assert second.returncode == 1
    assert "ddress already in use" in log
    assert "Traceback" not in log


async def test_a_network_engine_serves_openais_clients_its_model(start: Start) -> None:
    engine = start("--port", "0", MEZZOTINT_TOKEN="sesame")
    assert engine.stderr is not None
    url = engine.stderr.readline().split()[-1]
    headers = {"authorization": "Bearer sesame"}
    async with httpx2.AsyncClient(
        base_url=url, headers=headers, trust_env=False, timeout=30
    ) as http:
        answer = await http.post("/v1/completions", json={"prompt": "x", "model": "0.5b"})
        refused = await http.get("/v1/models", headers={"host": "evil.example"})
    assert answer.json()["choices"][0]["text"] == str(engine.pid)
    assert refused.status_code == 403


async def test_a_name_that_was_allowed_is_answered_to(start: Start) -> None:
    engine = start("--port", "0", "--allow-host", "gpu-box", MEZZOTINT_TOKEN="sesame")
    assert engine.stderr is not None
    url = engine.stderr.readline().split()[-1]
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        assert (await http.get("/health", headers={"host": "gpu-box:1"})).status_code == 200
        assert (await http.get("/health", headers={"host": "other"})).status_code == 403


async def test_a_certificate_makes_it_https(start: Start) -> None:
    flags = ("--tls-cert", TLS / "cert.pem", "--tls-key", TLS / "key.pem")
    engine = start("--port", "0", *flags, MEZZOTINT_TOKEN="sesame")
    assert engine.stderr is not None
    url = engine.stderr.readline().split()[-1]
    assert url.startswith("https://127.0.0.1:")
    trust = ssl.create_default_context(cafile=TLS / "cert.pem")
    async with httpx2.AsyncClient(base_url=url, verify=trust, trust_env=False, timeout=30) as http:
        assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("cert", "key"),
    [("none.pem", "key.pem"), ("key.pem", "cert.pem"), ("cert.pem", "locked-key.pem")],
)
def test_an_unusable_certificate_is_one_sentence(start: Start, cert: str, key: str) -> None:
    engine = start("--port", "0", "--tls-cert", TLS / cert, "--tls-key", TLS / key)
    _, log = engine.communicate(timeout=10)
    assert engine.returncode == 1
    assert f"{cert} cannot be used" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::"])
@pytest.mark.parametrize("token", ["", "short"])
def test_other_machines_need_a_token_that_was_chosen(start: Start, host: str, token: str) -> None:
    engine = start("--host", host, "--port", "0", MEZZOTINT_TOKEN=token)
    _, log = engine.communicate(timeout=10)
    assert engine.returncode == 1
    assert "set MEZZOTINT_TOKEN" in log
    assert "Listening" not in log


def test_a_chosen_token_opens_it_to_other_machines_with_a_warning(start: Start) -> None:
    token = "open sesame, please"
    engine = start("--host", "0.0.0.0", "--port", "0", MEZZOTINT_TOKEN=token)
    assert engine.stderr is not None
    assert "--tls-cert encrypts" in engine.stderr.readline()
    assert "Listening on http://0.0.0.0:" in engine.stderr.readline()


@pytest.mark.parametrize(
    "flags",
    [
        ["--tls-key", "key.pem"],
        ["--endpoint", "x", "--tls-cert", "cert.pem"],
        ["--endpoint", "x", "--allow-host", "name"],
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(flags)


def test_serving_is_ready_to_listen_without_torch() -> None:
    modules = "sys, model.serving.__main__, model.serving.http_server"
    check = f"import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
