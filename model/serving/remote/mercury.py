"""Inception's API for Mercury, a diffusion model: `POST /v1/fim/completions`.

It tells no probabilities and documents no shape for a streamed infill, so an answer comes whole:
at a deadline there is no part of one to show.
"""

from __future__ import annotations

from typing import Any

from model.api import EngineAddress, EngineHealth
from model.serving.remote.dialect import Gap, Piece, listed_models, versioned
from model.serving.remote.link import Link
from model.serving.remote.openai import choice_piece

DEFAULT_MODEL = "mercury-edit-2"


class MercuryDialect:
    """Speaks to Mercury. Its own default for `presence_penalty` (1.5) stays in force."""

    def __init__(self, address: EngineAddress) -> None:
        self._version = versioned(address.url)
        self._model = address.model or DEFAULT_MODEL

    @property
    def path(self) -> str:
        """Where a question goes."""
        return f"{self._version}/fim/completions"

    def body(self, gap: Gap) -> dict[str, object]:
        """The question."""
        return {
            "model": self._model,
            "prompt": gap.prefix,
            "suffix": gap.suffix,
            "max_tokens": gap.max_tokens,
            "temperature": gap.temperature,
            "top_p": gap.top_p,
        }

    def piece(self, event: dict[str, Any]) -> Piece:
        """The whole answer."""
        return choice_piece(event)

    def drops(self, complaint: str) -> bool:
        """Nothing here is optional."""
        return False

    async def health(self, link: Link) -> EngineHealth:
        """Whether the API answers and takes the key."""
        await listed_models(link, f"{self._version}/models")
        return EngineHealth(
            state="ready", message=f"{self._model} at {link.name}", model=self._model
        )
