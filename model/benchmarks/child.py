"""A server in a process of its own, started for a benchmark and gone with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from model.api import EngineUnavailableError

START_TIMEOUT_S = 180.0
_POLL_S = 0.1
_IDLE_S = 0.03


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Child:
    """A running process, and what can be seen of it from outside."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.name, self.pid = name, process.pid
        self._process, self._log = process, log

    def log(self) -> str:
        """What it has said so far."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def peak_bytes(self) -> int | None:
        """The most memory it has had resident; None where the system does not tell."""
        return peak_rss_bytes(self.pid)

    async def until_ready(self, is_ready: Callable[[], Awaitable[bool]]) -> None:
        """Ask again and again. Raises `EngineUnavailableError` when the process ends instead, or
        takes too long."""
        give_up = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None:
            if await is_ready():
                return
            if time.monotonic() > give_up:
                raise EngineUnavailableError(
                    f"{self.name} did not answer within {START_TIMEOUT_S:.0f} s"
                )
            await asyncio.sleep(_POLL_S)
        # One that cannot load its model leaves soon, perhaps before it was asked how it is.
        last_words = self.log().strip().rpartition("\n")[2]
        raise EngineUnavailableError(
            f"{self.name} ended with status {self._process.returncode}: {last_words}"
        )

    async def until_idle(self, at_most_s: float = 30.0) -> None:
        """Wait until it uses no processor time any more, where the system tells."""
        give_up = time.monotonic() + at_most_s
        used = _cpu_ticks(self.pid)
        while time.monotonic() < give_up:
            await asyncio.sleep(_IDLE_S)
            before, used = used, _cpu_ticks(self.pid)
            if used == before:
                return


@contextlib.contextmanager
def child(
    name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run a command. Raises `EngineUnavailableError` when it cannot be started."""
    with tempfile.TemporaryFile() as log:  # no pipe: nobody would empty it
        try:
            process = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        except OSError as error:
            raise EngineUnavailableError(f"{name} cannot be started: {error}") from error
        try:
            yield Child(name, process, log)
        finally:
            process.terminate()
            process.wait()


def peak_rss_bytes(pid: int | None = None) -> int | None:
    """The most memory a process (None: this one) has had resident; None where the system does not
    tell."""
    status = Path(f"/proc/{pid or 'self'}/status")
    if status.exists():
        # Not getrusage, which on Linux counts what our parent held when it started us.
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
        return 1024 * int(found[1]) if found else None
    if sys.platform == "darwin" and pid is None:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _cpu_ticks(pid: int) -> int | None:
    """Processor time that a process has used, in hundredths of a second."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[11]) + int(fields[12])
