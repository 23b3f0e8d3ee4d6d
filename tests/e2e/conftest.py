"""What tests of real editors share: the installed editors, and a watch on what they start."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# importlib mode, in which pytest runs, leaves the tests' own helpers out.
sys.path.append(str(Path(__file__).parent))

RUN_VARIABLE = "MEZZOTINT_TEST_RUN"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessWatch:
    """Finds every process started with `environment`, however far down, by a mark in it."""

    environment: dict[str, str]

    def running(self) -> dict[int, str]:
        """Command line by process id."""
        mark = f"{RUN_VARIABLE}={self.environment[RUN_VARIABLE]}".encode()
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(process.name)] = command.decode(errors="replace")
            except OSError:  # it has just ended, or is another user's
                continue
        return {pid: command for pid, command in found.items() if command}  # zombies have none

    def kill(self, *, containing: str = "") -> None:
        """SIGKILL every such process whose command line contains `containing`."""
        for pid, command in self.running().items():
            if containing in command:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


@contextmanager
def watching() -> Iterator[ProcessWatch]:
    """An environment with directories of its own, so that no engine is shared with the user's."""
    home = Path(tempfile.mkdtemp(prefix="mz-"))  # short: a socket's path may have 107 bytes
    directories = {
        f"XDG_{name}_HOME": str(home / name.lower())
        for name in ("CACHE", "CONFIG", "DATA", "STATE")
    }
    watch = ProcessWatch(
        environment={
            **os.environ,
            **directories,
            "HOME": str(home),
            "MEZZOTINT_RUNTIME_DIR": str(home),
            RUN_VARIABLE: uuid.uuid4().hex,
        }
    )
    try:
        yield watch
    finally:
        watch.kill()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def watch() -> Iterator[ProcessWatch]:
    """The watch of one test."""
    with watching() as watch:
        yield watch


@pytest.fixture(scope="session")
def editors() -> Path:
    """The directory that `.ci/editor-tests` installs the editors into."""
    directory = os.environ.get("MEZZOTINT_EDITORS")
    if directory is None:
        pytest.skip("drives real editors: run .ci/editor-tests, which installs them")
    return Path(directory)
