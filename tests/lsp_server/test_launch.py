"""The whole server, as an editor starts it, with an engine that somebody else runs."""

from __future__ import annotations

import asyncio
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


async def test_a_key_from_the_editors_store_reaches_its_engine_and_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEZZOTINT_API_KEY", raising=False)
    log = tmp_path / "log"
    async with another_engine() as other:
        other.answers["/infill"] = (200, {"content": "2 * x", "stop": True, "stop_type": "eos"})
        session = Session(tmp_path / "journal")
        session.set_configuration(
            {
                "mezzotint": {
                    "engine": {"url": other.url},
                    "log": {"level": "debug", "includeSource": True},
                    "deadlineMs": {"auto": 60_000},
                }
            }
        )
        await session.start_io(sys.executable, "-c", SERVER, str(log))
        options = {"apiKey": {"url": other.url, "key": "sesame"}}
        params = types.InitializeParams(
            capabilities=capabilities(answers=True), initialization_options=options
        )
        await asyncio.wait_for(session.initialize_session(params), 30)
        items = await session.inline(session.open(SOURCE), 1, 11, automatic=True)
        await asyncio.wait_for(session.shutdown_session(), 30)
        await session.stop()
    assert [item.insert_text for item in items] == ["2 * x"]
    # It tells no confidence, so `minConfidence` hides nothing.
    assert [suggestion.confidence for suggestion in session.answers[-1].suggestions] == [None]
    assert other.authorizations["/infill"] == "Bearer sesame"
    assert other.authorizations["/health"] in ("", "Bearer sesame")
    assert "sesame" not in log.read_text()
    assert log.read_text()  # something was logged at all
    assert not session.messages
