"""Finds, starts, shares and stops the local engine.

Every window of the user's editors runs a language server, and all of them want one engine: a
model in memory is large. The engine tells where it listens in a descriptor file; who finds none
that answers starts one, and the file's lock (the engine's) settles races. Each window holds a
lease, and the engine leaves soon after the last one ends, even if by SIGKILL.

    starting ──▶ loading ──▶ ready ──▶ stopped (it had nothing to do, or we closed)
        ▲           │  ╲       │
        └─ back-off ┴───╲──────┘       failed (the model cannot be loaded)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import platformdirs

from model.api import (
    CheckpointError,
    Completer,
    CompletionError,
    EngineAddress,
    EngineConnection,
    EngineHealth,
    EngineOverloadedError,
    EngineUnavailableError,
    InvalidRequestError,
)
from model.backbone.catalogue import known
from model.engines import connect, connect_remote

ENGINE_COMMAND = (sys.executable, "-m", "model.serving")

_OUR_CODE = Path(__file__).parents[2]
_START_TIMEOUT_S = 60.0
"""How long an engine may take until it listens (the model loads after that)."""
_RESPAWN_S = 0.5
_POLL_S = 0.1
_MAX_LOG_BYTES = 2**20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """How the engine is, for people to see."""

    kind: Literal["starting", "loading", "ready", "failed", "stopped"]
    message: str
    """One sentence; for `failed`, the engine's own."""
    fraction: float | None = None
    """Share of the loading that is done, 0..1, where the engine knows it."""


class Backoff:
    """Delays before the next start: 0.5 s, doubled up to 30 s."""

    FIRST_S = 0.5
    LAST_S = 30.0
    HEALTHY_S = 60.0

    def __init__(self) -> None:
        self._next_s = self.FIRST_S

    def delay_s(self, *, ready_s: float) -> float:
        """Seconds to wait now that an engine is gone that had been ready for `ready_s`."""
        if ready_s >= self.HEALTHY_S:
            self._next_s = self.FIRST_S
        delay_s = self._next_s
        self._next_s = min(2 * delay_s, self.LAST_S)
        return delay_s


class EngineProcess:
    """One window's hold on the engine: keeps it running and hands out a `Completer` to it.

    `model_path`: of a GGUF file or a checkpoint's folder, empty for the default backbone. `address`
    tells of an engine that somebody else runs, which is never started from here; it may raise
    `InvalidRequestError`.
    `on_state` is called in the event loop with every new state, and must not raise.
    """

    def __init__(
        self,
        *,
        model_path: str = "",
        device: str = "auto",
        dtype: str = "auto",
        address: Callable[[], EngineAddress] | None = None,
        idle_unload_minutes: float = 0,
        on_state: Callable[[EngineState], None] | None = None,
    ) -> None:
        if address is not None:
            self._connect = _RemoteEngine(address).connect
        else:
            model = Path(model_path).expanduser().absolute() if model_path else known("").path
            self._connect = _LocalEngine(model, device, dtype, idle_unload_minutes).connect
        self._on_state = on_state
        self._state = EngineState(kind="stopped", message="the engine has not been started")
        self._settled = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._connection: EngineConnection | None = None
        self._ready_at = 0.0
        self._closed = False

    @property
    def state(self) -> EngineState:
        """The last state that `on_state` was called with."""
        return self._state

    async def start(self) -> None:
        """See to it, in the background, that an engine runs; also the way out of `failed`.

        Raises `EngineUnavailableError` after `close`.
        """
        if self._closed:
            raise EngineUnavailableError("the engine has been let go")
        if self._supervisor is None or self._supervisor.done():
            self._set_state("starting", "the engine is starting")
            self._supervisor = asyncio.create_task(self._supervise())

    async def completer(self, timeout: float) -> Completer:
        """The running engine, for which it waits up to `timeout` seconds. Do not close it.

        Starts the engine when it has stopped. Raises `EngineUnavailableError` saying what is
        being waited for, or why that would be no use.
        """
        deadline = time.monotonic() + timeout
        while self._connection is None:
            if self._state.kind == "stopped":  # perhaps again: an engine may leave at any moment
                await self.start()
            remaining = deadline - time.monotonic()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._settled.wait(), remaining)
            if self._connection is None and (remaining <= 0 or self._state.kind == "failed"):
                raise EngineUnavailableError(self._state.message)
        return self._connection

    async def close(self) -> None:
        """Let go of the engine, which leaves if nobody else holds it. Final, idempotent."""
        self._closed = True
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._state.kind != "stopped":
            self._set_state("stopped", "the engine has been let go")

    async def _supervise(self) -> None:
        """Attach to one engine after another until one stops in peace or cannot be had."""
        backoff = Backoff()
        while True:
            self._ready_at = time.monotonic()
            try:
                await self._attach()
            except (EngineUnavailableError, EngineOverloadedError) as error:
                delay_s = backoff.delay_s(ready_s=time.monotonic() - self._ready_at)
                logger.warning("%s; trying again in %.1f s", error, delay_s)
                self._set_state("starting", f"{error}; trying again in {delay_s:.1f} s")
                await asyncio.sleep(delay_s)
            except (CompletionError, OSError) as error:
                logger.error("The engine failed: %s", error)
                self._set_state("failed", str(error))
                return
            except Exception as error:  # nobody awaits this task: it would starve without a word
                logger.exception("The engine failed")
                self._set_state("failed", f"internal error, see the log ({type(error).__name__})")
                return
            else:
                self._set_state("stopped", "the engine has stopped; the next completion starts it")
                return

    async def _attach(self) -> None:
        """Hold a lease on an engine, and offer its completer while it is ready.

        Returns when the engine leaves of its own accord; raises a `CompletionError` otherwise.
        """
        connection = await self._connect()
        lease = asyncio.create_task(connection.hold_lease())
        try:
            await self._until_ready(connection, lease)
            self._ready_at = time.monotonic()
            self._connection = connection
            self._set_state("ready", "the engine is ready")
            await lease
        finally:
            self._connection = None
            self._settled.clear()
            lease.cancel()
            await asyncio.gather(lease, return_exceptions=True)
            await connection.close()

    async def _until_ready(self, connection: EngineConnection, lease: asyncio.Task[None]) -> None:
        while (health := await _working_health(connection)).state != "ready":
            self._set_state("loading", health.message, health.fraction)
            done, _ = await asyncio.wait({lease}, timeout=_POLL_S)
            if done:
                lease.result()
                raise EngineUnavailableError("the engine left while its model was loading")

    def _set_state(
        self,
        kind: Literal["starting", "loading", "ready", "failed", "stopped"],
        message: str,
        fraction: float | None = None,
    ) -> None:
        state = EngineState(kind=kind, message=message, fraction=fraction)
        if state == self._state:
            return
        self._state = state
        if kind in ("starting", "loading"):
            self._settled.clear()
        else:
            self._settled.set()
        if self._on_state is not None:
            self._on_state(state)


class _RemoteEngine:
    """An engine that somebody else runs."""

    def __init__(self, address: Callable[[], EngineAddress]) -> None:
        self._address = address

    async def connect(self) -> EngineConnection:
        """Raises `EngineUnavailableError` when it does not answer, `InvalidRequestError` when it
        must not, cannot or will not be used."""
        return await _answering(await connect_remote(self._address()))


class _LocalEngine:
    """The engine of one configuration on this machine, wherever it was started from."""

    def __init__(self, model: Path, device: str, dtype: str, idle_unload_minutes: float) -> None:
        key = json.dumps([version("mezzotint"), str(model), device, dtype])
        name = f"engine-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
        self._descriptor = runtime_directory() / name
        self._log = self._descriptor.with_suffix(".log")
        self._command = [
            *ENGINE_COMMAND,
            *("--endpoint", str(self._descriptor)),
            *("--model", str(model)),
            *("--device", device),
            *("--dtype", dtype),
            *("--idle-unload-minutes", str(idle_unload_minutes)),
        ]
        self._child: subprocess.Popen[bytes] | None = None
        self._spawned_at = 0.0

    async def connect(self) -> EngineConnection:
        """Find the engine, or start it and wait until it listens.

        Raises `EngineUnavailableError` when it does not come up, `OSError` when it cannot start.
        """
        _make_private(self._descriptor.parent)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (connection := await self._find()) is None:
            if time.monotonic() > deadline:
                raise EngineUnavailableError(f"the engine does not answer; its log is {self._log}")
            self._keep_starting()
            await asyncio.sleep(_POLL_S)
        self._child = None  # one among several windows' by now; the lease tells when it is gone
        return connection

    async def _find(self) -> EngineConnection | None:
        """The engine that the descriptor tells of, if it answers and knows us."""
        try:
            with self._descriptor.open(encoding="utf-8") as file:
                # In a directory that others can write, the file might be a trap.
                if sys.platform != "win32" and os.fstat(file.fileno()).st_uid != os.getuid():
                    raise PermissionError(f"{self._descriptor} is another user's; remove it")
                description: Any = json.load(file)
            address, token = str(description["socket"]), str(description["token"])
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None
        try:
            return await _answering(connect(address, token))
        except (EngineUnavailableError, InvalidRequestError):
            return None

    def _keep_starting(self) -> None:
        """Spawn an engine unless one is on its way."""
        status = None if self._child is None else self._child.poll()
        if status:
            self._child = None
            raise EngineUnavailableError(
                f"the engine ended with status {status}; its log is {self._log}"
            )
        # Status 0 says that another engine holds the lock: one about to listen, or to leave.
        may_spawn = time.monotonic() - self._spawned_at >= _RESPAWN_S
        if self._child is None or (status == 0 and may_spawn):
            self._child = self._spawn()
            self._spawned_at = time.monotonic()

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the engine so that it outlives this process and its terminal."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        if self._log.exists() and self._log.stat().st_size > _MAX_LOG_BYTES:
            flags |= os.O_TRUNC
        with open(os.open(self._log, flags, 0o600), "ab") as log:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                # The editor's directory may hold a package called `model`; ours comes first here.
                cwd=_OUR_CODE,
                start_new_session=True,
                creationflags=_DETACHED,
            )
        logger.info("Started engine %d; its log is %s", child.pid, self._log)
        # Waits for it, lest it stay behind as a zombie; a daemon thread, for it may outlive us.
        threading.Thread(target=child.wait, name="engine-reaper", daemon=True).start()
        return child


if sys.platform == "win32":
    _DETACHED = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS
else:
    _DETACHED = 0


def runtime_directory() -> Path:
    """Where the engines' descriptors, sockets and logs lie (MEZZOTINT_RUNTIME_DIR overrides)."""
    override = os.environ.get("MEZZOTINT_RUNTIME_DIR", "")
    if override:
        return Path(override).absolute()
    with warnings.catch_warnings():
        # Outside a login session there is no XDG_RUNTIME_DIR; platformdirs' fallback serves, since
        # `_make_private` refuses a directory of somebody else's.
        warnings.simplefilter("ignore", platformdirs.api.RuntimeDirWarning)
        return platformdirs.user_runtime_path("mezzotint")


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32":
        directory.chmod(0o700)  # fails when it is another user's


async def _answering(connection: EngineConnection) -> EngineConnection:
    """`connection`, closed again if nobody answers on it."""
    try:
        await _working_health(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _working_health(connection: EngineConnection) -> EngineHealth:
    """The engine's health; raises `CheckpointError` when it has failed.

    A failed engine leaves once it has said so, hence no such answer may be overlooked.
    """
    health = await connection.health()
    if health.state == "failed":
        raise CheckpointError(health.message)
    return health
