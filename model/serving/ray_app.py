"""Replicas of one engine on the machines of a Ray cluster, behind the HTTP side of a single one.

    editors ──HTTP──▶ gateway (this process) ──Ray Serve──▶ replica  replica  …

`python -m model.serving.ray_app --replicas 2` takes the flags of `mezzotint serve` as well. The
gateway holds no model: it is the same server, around a `Completer` that hands requests on. Of Serve
it uses replicas and routing only; its own HTTP proxies, which ask nobody for a token, stay off.

A document's requests go to one replica, whose caches hold it: consistent hashing of client and
document, so that a replica more or less moves few documents. A request whose replica dies is asked
again at the next one on the ring; an infill changes nothing, so asking twice does no harm.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from model.api import (
    CheckpointError,
    Completer,
    CompletionError,
    EngineUnavailableError,
    Frame,
    FrameListener,
    InfillRequest,
    InfillResult,
    InvalidRequestError,
)
from model.serving import __main__ as serving
from model.serving.watching import watched

_APP = "mezzotint"
_ATTEMPTS = 4
_MAX_ONGOING = 64
"""Requests that a replica takes at a time; its scheduler batches them."""
_HEALTH_S = 2.0
"""How often Serve looks whether a replica lives; a dead one is replaced after that."""
REPLICA_GONE = "a replica is gone; asking another"
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where the replicas run. Raises `ValueError` on construction for less than one."""

    replicas: int = 2
    address: str = ""
    """A running cluster's, such as `auto`; empty starts one on this machine."""
    cpus: float = 1
    """That Ray sets aside for a replica."""
    gpus: float = 0

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas is {self.replicas}; at least one has to answer")


class Replica:
    """One engine, in a process of its own. What `load` raises keeps the replica from starting."""

    def __init__(self, load: Callable[[], Completer]) -> None:
        self._completer = load()

    async def complete(
        self, request: InfillRequest, on_frame: FrameListener | None = None
    ) -> InfillResult | CompletionError:
        """Fill the holes; an error comes back as a value, lest Ray take it for its own."""
        try:
            return await self._completer.complete(request, on_frame=on_frame)
        except CompletionError as error:
            return error

    async def watch(
        self, request: InfillRequest
    ) -> AsyncGenerator[Frame | InfillResult | CompletionError]:
        """What `complete` returns, after all frames. Closing this cancels the completer."""

        def start(on_frame: FrameListener) -> asyncio.Task[InfillResult | CompletionError]:
            return asyncio.create_task(self.complete(request, on_frame))

        async with contextlib.aclosing(watched(start)) as events:
            async for event in events:
                yield event


class RayCompleter:
    """A `Completer` over the replicas behind a Serve handle.

    `died` is what awaiting a request of a dead replica raises. `affine` says whether a document
    stays with a replica; False is for measuring what that is worth.
    """

    def __init__(self, handle: Any, died: type[Exception], *, affine: bool = True) -> None:
        self.handle = handle
        self.died = died
        self._affine = affine

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        """Have a replica fill the holes, and another one, from the first frame, if that one dies.

        Raises the replica's `CompletionError`, and `EngineUnavailableError` when none is left.
        """
        started = time.monotonic()
        session = f"{request.client}\0{request.document}" if self._affine else ""
        handle = self.handle.options(session_id=session)
        for _ in range(_ATTEMPTS):
            try:
                outcome = await _outcome(handle, _due(request, started), on_frame)
            except self.died as error:
                logger.warning("%s (%s)", REPLICA_GONE, type(error).__name__)
                continue
            if isinstance(outcome, CompletionError):
                raise outcome
            return outcome
        raise EngineUnavailableError(f"{_ATTEMPTS} replicas in turn have failed on this request")

    async def close(self) -> None:
        """The replicas are others' as well, and stay."""


async def _outcome(
    handle: Any, request: InfillRequest, on_frame: FrameListener | None
) -> InfillResult | CompletionError:
    """What a replica makes of `request`; leaving early stops it."""
    if on_frame is None:
        response = handle.complete.remote(request)
    else:  # a message for each frame
        response = handle.options(stream=True).watch.remote(request)
    try:
        if on_frame is None:
            return await response
        async for reply in response:
            if not isinstance(reply, Frame):
                return reply
            on_frame(reply)
        return EngineUnavailableError("the replica ended without an answer")
    finally:
        response.cancel()  # does nothing to one that has answered


def _due(request: InfillRequest, started: float) -> InfillRequest:
    """`request` with what is left of its deadline."""
    if request.deadline_ms is None:
        return request
    spent_ms = (time.monotonic() - started) * 1000
    return replace(request, deadline_ms=max(request.deadline_ms - spent_ms, 0.0))


def join_cluster(cluster: Cluster) -> None:
    """Connect this process to the cluster, or start one.

    To be called from a thread that stays: a cluster on this machine ends with the thread that
    started it. Raises `EngineUnavailableError` when there is none, and without Ray.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray's telemetry, on by default
    ray = _optional("ray")
    try:
        if cluster.address:
            ray.init(address=cluster.address)
        else:
            ray.init(address="local", include_dashboard=False)
    except Exception as error:  # a start that takes too long is Ray's bare `Exception`
        raise EngineUnavailableError(f"there is no Ray cluster to join: {error}") from error


def deploy(cluster: Cluster, load: Callable[[], Completer]) -> RayCompleter:
    """Start the replicas in the cluster joined, or take those that another gateway has started.

    Waits until all have loaded. Raises `CheckpointError` when they cannot.
    """
    serve = _optional("ray.serve")
    died: type[Exception] = _optional("ray.exceptions").RayActorError
    serve.start(proxy_location="Disabled")
    if _APP in serve.status().applications:
        return RayCompleter(serve.get_app_handle(_APP), died)
    deployment = serve.deployment(
        num_replicas=cluster.replicas,
        max_ongoing_requests=_MAX_ONGOING,
        health_check_period_s=_HEALTH_S,
        ray_actor_options={"num_cpus": cluster.cpus, "num_gpus": cluster.gpus},
        logging_config={"enable_access_log": False},
        request_router_config=_optional("ray.serve.config").RequestRouterConfig(
            request_router_class=_ROUTER,
            request_router_kwargs={"num_fallback_replicas": cluster.replicas},
        ),
    )(Replica)
    try:
        handle = serve.run(deployment.bind(load), name=_APP, route_prefix=None)
    except RuntimeError as error:
        raise CheckpointError(f"the replicas do not start: {error}") from error
    return RayCompleter(handle, died)


def _optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EngineUnavailableError(
            f"replicas need Ray ({error}); `pip install 'mezzotint[ray]'`"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Serve replicas of the model that `argv` names; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m model.serving.ray_app",
        description="Run replicas of the engine on a Ray cluster, behind one HTTP address.",
        epilog="Further flags are those of `mezzotint serve`.",
    )
    defaults = Cluster()
    parser.add_argument(
        "--replicas", type=int, default=defaults.replicas, help="engines (%(default)s)"
    )
    parser.add_argument(
        "--cluster", default="", metavar="ADDRESS", help="a running Ray cluster, such as auto"
    )
    parser.add_argument("--cpus", type=float, default=defaults.cpus, help="per engine")
    parser.add_argument("--gpus", type=float, default=defaults.gpus, help="per engine")
    own, others = parser.parse_known_args(argv)
    try:
        cluster = Cluster(replicas=own.replicas, address=own.cluster, cpus=own.cpus, gpus=own.gpus)
    except ValueError as error:
        parser.error(str(error))
    args = serving.parse_args(others)
    try:
        join_cluster(cluster)
    except EngineUnavailableError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1

    def load(model: str) -> RayCompleter:
        if model != str(args.model):
            raise InvalidRequestError(
                "replicas keep the model they were started with; start others"
            )
        load_one = partial(_load, args.model.absolute(), device=args.device, dtype=args.dtype)
        return deploy(cluster, load_one)

    return serving.run(args, load)


def _load(model: Path, *, device: str, dtype: str) -> Completer:
    from model.serving.loading import load_completer  # imports torch, which only replicas need

    return load_completer(model, device=device, dtype=dtype)


if __name__ == "__main__":
    sys.exit(main())
