"""Ways to a `Completer`: an engine process that runs, one that somebody else runs, or a model in
this process. Imports no torch before a model is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from model.api import Completer, EngineAddress, EngineConnection
from model.backbone.catalogue import DEFAULT


async def connect_remote(address: EngineAddress) -> EngineConnection:
    """Talk to an engine that somebody else runs; asks it what it is where `address` leaves that
    open, without sending the key.

    Raises `EngineUnavailableError` when nobody answers and `InvalidRequestError` when what answers
    is nothing we know.
    """
    from model.serving.remote import connect_remote as connect

    return await connect(address)


def connect(socket: str, token: str) -> EngineConnection:
    """Talk to a running engine.

    `socket` is `unix:/path/to.sock` or `http://127.0.0.1:PORT`; `token` is the engine's own.
    Does no I/O yet. Raises `InvalidRequestError` when `socket` is neither.
    """
    from model.serving.client import EngineClient

    return EngineClient(socket, token)


def load(
    model: str | Path = DEFAULT,
    *,
    device: str = "auto",
    dtype: str = "auto",
    context_cache: Literal["none", "dual"] = "none",
) -> Completer:
    """Load a checkpoint into this process (imports torch, takes seconds or more).

    `model` is a backbone's name, a GGUF file, a checkpoint directory (docs/checkpoints.md), or a
    hub id (`owner/name`, `owner/name@revision`). `context_cache` is for open checkpoints of full
    attention: `dual` keeps what surrounds a canvas as it was in its first step, an approximation.
    Raises `CheckpointError`.
    """
    from model.serving.loading import load_completer

    return load_completer(model, device=device, dtype=dtype, context_cache=context_cache)
