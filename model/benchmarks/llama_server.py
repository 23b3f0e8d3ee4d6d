"""llama.cpp's server, started for a benchmark and gone with it.

    python -m model.benchmarks.llama_server FILE PORT THREADS

runs the one that the `xllamacpp` wheel holds, in a process of its own, for those who have not built
a `llama-server`.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model.api import EngineUnavailableError
from model.benchmarks.child import Child, child, free_port

CONTEXT_TOKENS = 4096
"""Of the context that both engines keep."""

Answer = dict[str, Any]


class LlamaServer:
    """A running server."""

    def __init__(self, url: str, process: Child) -> None:
        import httpx2

        self.process = process
        self._http = httpx2.AsyncClient(base_url=url, timeout=None, trust_env=False)

    async def ask(self, path: str, body: Answer) -> Answer:
        """Post a question. Raises `EngineUnavailableError` for anything but an answer."""
        import httpx2

        try:
            reply = await self._http.post(path, json=body)
        except httpx2.TransportError as error:
            raise EngineUnavailableError(f"llama.cpp went away: {error}") from error
        if reply.status_code != 200:
            raise EngineUnavailableError(f"llama.cpp answered {reply.status_code}: {reply.text}")
        return reply.json()

    async def is_ready(self) -> bool:
        """Whether it has loaded its model."""
        import httpx2

        with contextlib.suppress(httpx2.TransportError):
            return (await self._http.get("/health")).status_code == 200
        return False

    async def build(self) -> str:
        """Which llama.cpp it is. A wheel's also tells what it makes use of in this processor."""
        log = self.process.log()
        wheel = re.match(r"xllamacpp \S+", log)
        if wheel is None:
            return str((await self._http.get("/props")).json().get("build_info", "unknown"))
        return " ".join([wheel[0], *re.findall(r"(\w+) = 1 \|", log)])

    async def close(self) -> None:
        """Let go of the connection."""
        await self._http.aclose()


@contextlib.asynccontextmanager
async def llama_server(
    model: Path, program: Path | None, *, threads: int
) -> AsyncIterator[LlamaServer]:
    """A server of a GGUF file, once it is ready: `program`, or the one in the `xllamacpp` wheel.

    Raises `EngineUnavailableError`.
    """
    port = free_port()
    if program is None:
        if find_spec("xllamacpp") is None:
            raise EngineUnavailableError(
                "there is no llama.cpp to compare with: name a build with --llama-server, or "
                "pip install xllamacpp"
            )
        command = [sys.executable, "-m", __name__, str(model), str(port), str(threads)]
    else:
        command = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--threads", str(threads), "--ctx-size", str(CONTEXT_TOKENS), "--parallel", "1"]
        command += ["--flash-attn", "off"]  # on a CPU it is slower
    with child("llama.cpp", command) as process:
        server = LlamaServer(f"http://127.0.0.1:{port}", process)
        try:
            await process.until_ready(server.is_ready)
            yield server
        finally:
            await server.close()


def main(argv: Sequence[str]) -> None:
    """Serve until terminated."""
    xllamacpp: Any = import_module("xllamacpp")  # compiled: it has no types
    model, port, threads = argv
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.port = int(port)
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    print(f"xllamacpp {version('xllamacpp')}", xllamacpp.get_system_info(), flush=True)
    server = xllamacpp.Server(params)  # stops when it is let go of
    threading.Event().wait()
    del server


if __name__ == "__main__":
    main(sys.argv[1:])
