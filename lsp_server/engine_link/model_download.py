"""A model's way to this machine, as a process that can be stopped.

The process is `model.backbone.fetch_process`; this is the other end of its pipes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from model.api import CheckpointError

FETCH_COMMAND = (sys.executable, "-m", "model.backbone.fetch_process")

_OUR_CODE = Path(__file__).parents[2]
_TIDY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a download would fetch."""

    title: str
    missing_bytes: int
    """That are not on this machine yet."""
    licence: str
    is_under_way: bool
    """Whether another process fetches it already, which is then waited for."""


class ModelDownload:
    """One model, looked for, offered and fetched, in this order. Close it in any case.

    All methods raise `CheckpointError`, whose text is one sentence.
    """

    def __init__(self, name: str) -> None:
        """`name` is a backbone's (empty for the default one), or a hub id."""
        self._name = name
        self._process: Process | None = None

    async def cached(self) -> Path | None:
        """Where all of it lies on this machine; asks nobody else."""
        try:
            self._process = await asyncio.create_subprocess_exec(
                *FETCH_COMMAND,
                self._name,
                stdin=PIPE,
                stdout=PIPE,
                # The editor's directory may hold a package called `model`; ours comes first here.
                cwd=_OUR_CODE,
            )
        except OSError as error:
            raise CheckpointError(f"the model cannot be looked for: {error}") from error
        found = (await self._said("cached"))["cached"]
        return None if found is None else Path(str(found))

    async def offer(self) -> Offer:
        """What there is of it to be fetched."""
        fields = cast("dict[str, Any]", (await self._said("offer"))["offer"])
        return Offer(
            title=str(fields["title"]),
            missing_bytes=int(fields["missing_bytes"]),
            licence=str(fields["licence"]),
            is_under_way=bool(fields["is_under_way"]),
        )

    async def fetch(self, on_bytes: Callable[[int], None]) -> Path:
        """Download it; `on_bytes` is told how many of `missing_bytes` have come."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        while "path" not in (said := await self._said("bytes", "path")):
            on_bytes(int(cast("int", said["bytes"])))
        return Path(str(said["path"]))

    async def close(self) -> None:
        """Stop whatever is under way. What can be gone on with stays for the next time."""
        process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()  # at which it tidies up and ends
        try:
            await asyncio.wait_for(process.wait(), _TIDY_S)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()

    async def _said(self, *expected: str) -> dict[str, object]:
        """The next thing that the process says, one of `expected`."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        try:
            said: Any = json.loads(line)
        except ValueError:  # nothing: it has ended
            said = {}
        if "error" in said:
            raise CheckpointError(str(said["error"]))
        if not any(name in said for name in expected):
            raise CheckpointError("the model's download broke off; the log says why")
        return said
