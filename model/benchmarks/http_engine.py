"""An engine over HTTP, started for a benchmark and gone with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from importlib.util import find_spec
from typing import IO

from model import api, engines
from model.benchmarks.setting import Setting

NEEDS = ("starlette", "uvicorn", "httpx2", "filelock")
"""Packages that a GPU machine may lack."""
START_TIMEOUT_S = 180.0
_POLL_S = 0.1


def missing_packages() -> list[str]:
    """Which packages an HTTP engine lacks here."""
    return [name for name in NEEDS if find_spec(name) is None]


@contextlib.asynccontextmanager
async def http_engine(setting: Setting) -> AsyncIterator[api.Completer]:
    """A connection to a `mezzotint serve` of its own, once it has loaded the model.

    Raises `EngineUnavailableError` when it does not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token = secrets.token_urlsafe(32)
    command = [sys.executable, "-m", "model.serving", "--port", str(port)]
    command += ["--model", str(setting.model), "--device", setting.device, "--dtype", setting.dtype]
    with tempfile.TemporaryFile("w+") as log:  # no pipe: nobody would empty it
        environment = {**os.environ, "MEZZOTINT_TOKEN": token}
        process = subprocess.Popen(command, env=environment, stderr=log)
        connection = engines.connect(f"http://127.0.0.1:{port}", token)
        try:
            await asyncio.wait_for(_ready(connection, process, log), START_TIMEOUT_S)
            yield connection
        except asyncio.TimeoutError:
            raise api.EngineUnavailableError(
                f"`mezzotint serve` did not answer within {START_TIMEOUT_S:.0f} s"
            ) from None
        finally:
            await connection.close()
            process.terminate()
            process.wait()


async def _ready(
    connection: api.EngineConnection, process: subprocess.Popen[bytes], log: IO[str]
) -> None:
    while process.poll() is None:
        with contextlib.suppress(api.EngineUnavailableError):
            health = await connection.health()
            if health.state == "ready":
                return
            if health.state == "failed":
                raise api.CompletionError(health.message)
        await asyncio.sleep(_POLL_S)
    # One that cannot load its model leaves soon, perhaps before it was asked how it is.
    log.seek(0)
    last_words = log.read().strip().rpartition("\n")[2]
    raise api.EngineUnavailableError(
        f"`mezzotint serve` ended with status {process.returncode}: {last_words}"
    )
