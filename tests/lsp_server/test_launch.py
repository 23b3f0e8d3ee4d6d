"""The whole server, as an editor starts it, with an engine that somebody else runs."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from another_engine import another_engine
from conftest import Session, capabilities
from lsprotocol import types

SOURCE = "def double(x):\n    return \n"
SERVER = """
import os, sys
os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), 2)
from lsp_server.launch import run_stdio
sys.exit(run_stdio())
"""


async def start(directory: Path, settings: dict[str, object], options: object = None) -> Session:
    """A session with a real server, whose log is `directory / "log"`."""
    session = Session(directory / "journal")
    session.set_configuration({"mezzotint": settings})
    await session.start_io(sys.executable, "-c", SERVER, str(directory / "log"))
    params = types.InitializeParams(
        capabilities=capabilities(answers=True), initialization_options=options
    )
    await asyncio.wait_for(session.initialize_session(params), 30)
    return session


async def stop(session: Session) -> None:
    await asyncio.wait_for(session.shutdown_session(), 30)
    await session.stop()


async def test_a_key_from_the_editors_store_reaches_its_engine_and_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEZZOTINT_API_KEY", raising=False)
    async with another_engine() as other:
        other.answers["/infill"] = (200, {"content": "2 * x", "stop": True, "stop_type": "eos"})
        settings = {
            "engine": {"url": other.url},
            "log": {"level": "debug", "includeSource": True},
            "deadlineMs": {"auto": 60_000},
        }
        options = {"apiKey": {"url": other.url, "key": "sesame"}}
        session = await start(tmp_path, settings, options)
        items = await session.inline(session.open(SOURCE), 1, 11, automatic=True)
        await stop(session)
    assert [item.insert_text for item in items] == ["2 * x"]
    # It tells no confidence, so `minConfidence` hides nothing.
    assert [suggestion.confidence for suggestion in session.answers[-1].suggestions] == [None]
    assert other.authorizations["/infill"] == "Bearer sesame"
    log = (tmp_path / "log").read_text()
    assert log  # something was logged at all
    assert "sesame" not in log
    assert not session.messages


@pytest.mark.parametrize("allowed", [False, True])
async def test_the_log_holds_source_text_only_where_that_is_allowed(
    tmp_path: Path, allowed: bool
) -> None:
    async with another_engine() as other:
        other.answers["/infill"] = (200, {"content": "2 * x", "stop": True, "stop_type": "eos"})
        settings = {
            "engine": {"url": other.url},
            "log": {"level": "debug", "includeSource": allowed},
            "deadlineMs": {"manual": 60_000},
        }
        session = await start(tmp_path, settings)
        items = await session.inline(session.open(SOURCE), 1, 11)
        await stop(session)
    assert [item.insert_text for item in items] == ["2 * x"]
    log = (tmp_path / "log").read_text()
    assert log
    assert ("2 * x" in log or "double" in log) == allowed


async def test_the_status_says_why_an_engine_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEZZOTINT_API_KEY", "sesame")
    async with another_engine() as other:
        other.answers["/infill"] = (401, {"error": {"message": "no such key: sesame"}})
        settings = {"engine": {"url": other.url}, "deadlineMs": {"manual": 60_000}}
        session = await start(tmp_path, settings)
        assert await session.inline(session.open(SOURCE), 1, 11) == []
        await session.until(lambda: session.statuses[-1].state == "error")
        message = session.statuses[-1].message
        await stop(session)
    assert "does not take the key (HTTP 401: no such key: …)" in message
    assert "sesame" not in (tmp_path / "log").read_text() + message


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
async def test_a_server_that_is_interrupted_leaves_though_the_client_is_still_there(
    number: signal.Signals, tmp_path: Path
):
    session = await start(tmp_path, {"engine": {"address": "unix:/nowhere"}})
    process = session._server  # pyright: ignore[reportPrivateUsage]
    assert process is not None
    process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), 30) != 0
    await session.stop()
