"""Engines that somebody else runs, behind the same `EngineConnection` as our own.

detect    what an address speaks
engine    an infill as one-hole questions, and the answers as candidates
link      HTTP: keys, time-outs, retries, what went wrong
dialect   what differs between engines; `mercury`, `llama_cpp` and `openai` are the three
"""

from __future__ import annotations

from model.api import EngineAddress, EngineConnection
from model.serving.client import EngineClient
from model.serving.remote.detect import kind_of
from model.serving.remote.dialect import base_url
from model.serving.remote.engine import RemoteEngine
from model.serving.remote.link import Link
from model.serving.remote.llama_cpp import LlamaCppDialect
from model.serving.remote.mercury import MercuryDialect
from model.serving.remote.openai import OpenAIDialect

__all__ = ["connect_remote"]


async def connect_remote(address: EngineAddress) -> EngineConnection:
    """Connect to the engine at `address`, as `model.engines.connect_remote` says."""
    kind = await kind_of(address) if address.kind == "auto" else address.kind
    if kind == "mezzotint":
        return EngineClient(address.url, address.key or address.token)
    dialects = {"mercury": MercuryDialect, "llama.cpp": LlamaCppDialect, "openai": OpenAIDialect}
    return RemoteEngine(Link(base_url(address.url), key=address.key), dialects[kind](address))
