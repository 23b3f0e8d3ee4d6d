"""A `mezzotint serve` of a benchmark's own."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec

from model import api, engines
from model.benchmarks.child import Child, child, free_port
from model.benchmarks.setting import Setting

NEEDS = ("starlette", "uvicorn", "httpx2", "filelock")
"""Packages that a GPU machine may lack."""


def missing_packages() -> list[str]:
    """Which packages an HTTP engine lacks here."""
    return [name for name in NEEDS if find_spec(name) is None]


@contextlib.asynccontextmanager
async def http_engine(setting: Setting) -> AsyncIterator[tuple[api.EngineConnection, Child]]:
    """A connection to an engine in a process of its own, once it has loaded the model.

    Raises `EngineUnavailableError` when it does not start.
    """
    port, token = free_port(), secrets.token_urlsafe(32)
    command = [sys.executable, "-m", "model.serving", "--port", str(port)]
    command += ["--model", str(setting.model), "--device", setting.device, "--dtype", setting.dtype]
    with child("`mezzotint serve`", command, {"MEZZOTINT_TOKEN": token}) as process:
        connection = engines.connect(f"http://127.0.0.1:{port}", token)

        async def is_ready() -> bool:
            with contextlib.suppress(api.EngineUnavailableError):
                health = await connection.health()
                if health.state == "failed":
                    raise api.CompletionError(health.message)
                return health.state == "ready"
            return False

        try:
            await process.until_ready(is_ready)
            yield connection, process
        finally:
            await connection.close()
