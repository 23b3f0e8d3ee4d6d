"""What differs between remote engines: how a question is put, and how an answer reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast
from urllib.parse import urlsplit

from model.api import EngineHealth, EngineUnavailableError
from model.serving.remote.link import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One hole to fill once."""

    prefix: str
    suffix: str
    max_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token."""

    raw: bytes
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one event of an answer adds to it. None where it does not say."""

    text: str = ""
    tokens: Sequence[Token] = ()
    finish: Literal["stop", "length"] | None = None
    num_tokens: int | None = None
    """Tokens generated, in all."""
    num_encoded: int | None = None
    """Tokens of the prompt that no cache held."""


class Dialect(Protocol):
    """How one kind of engine is spoken to."""

    @property
    def path(self) -> str:
        """Where a question goes, below the engine's address."""
        ...

    def body(self, gap: Gap) -> dict[str, object]:
        """The question. Raises `InvalidRequestError` for a gap that cannot be put into words."""
        ...

    def piece(self, event: dict[str, Any]) -> Piece:
        """Read one event of the answer. Raises `LookupError`, `TypeError` or `ValueError` for one
        of another shape."""
        ...

    def drops(self, complaint: str) -> bool:
        """Whether to ask again, after `complaint`, without an optional field that it names."""
        ...

    async def health(self, link: Link) -> EngineHealth:
        """Ask how the engine is.

        Raises `EngineUnavailableError`, or `InvalidRequestError` for a refused key.
        """
        ...


_ENDPOINTS = re.compile(r"/(v1/)?((fim/)?completions|infill|models|health)$")


def base_url(url: str) -> str:
    """`url` as the root of the API that it leads to: people paste whole endpoints."""
    return _ENDPOINTS.sub("", url.rstrip("/")).removesuffix("/v1")


def versioned(url: str) -> str:
    """What goes between `base_url(url)` and `/completions`: nothing where another version than 1
    is part of the address."""
    last = urlsplit(base_url(url)).path.rpartition("/")[2]
    return "" if re.fullmatch(r"v\d+\w*", last) else "/v1"


async def listed_models(link: Link, path: str) -> list[str] | None:
    """Ids of the models that an OpenAI-like engine lists; None where it keeps no list.

    Raises `EngineUnavailableError`, or `InvalidRequestError` for a refused key.
    """
    status, reply = await link.get(path)
    if status in (404, 405, 501):
        return None
    match reply:
        case {"data": [*entries]}:
            found = [cast("dict[str, object]", e) for e in entries if isinstance(e, dict)]
            return [str(entry["id"]) for entry in found if "id" in entry]
        case _:
            raise EngineUnavailableError(f"{link.name} answers {path} with no list of models")
