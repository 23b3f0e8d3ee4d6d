"""The one model that is served: its name, and `/v1/models`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from model.api import SHIPPED_WEIGHTS
from model.serving.v1.chat_template import ChatTemplate
from model.serving.v1.errors import ApiError


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What clients may know of the model."""

    name: str
    checkpoint: Path | None
    """Its directory; None for a hub id's, until that is loaded."""
    since: int = field(default_factory=lambda: int(time.time()))
    """Unix time at which it began to be served."""

    @classmethod
    def of(cls, model: str) -> ServedModel:
        """The model in the directory `model`, or of that hub id; the one that comes with Mezzotint
        bears its name."""
        checkpoint = Path(model)
        is_ours = checkpoint == SHIPPED_WEIGHTS
        is_folder = checkpoint.is_dir()
        name = checkpoint.absolute().name if is_folder else model
        return cls(
            name="mezzotint" if is_ours else name, checkpoint=checkpoint if is_folder else None
        )

    @cached_property
    def template(self) -> ChatTemplate | None:
        """How it wants conversations written down, read once; None where it does not converse.
        Raises `CheckpointError`."""
        return None if self.checkpoint is None else ChatTemplate.of_checkpoint(self.checkpoint)

    def check(self, name: str) -> None:
        """Raise `ApiError` unless `name` is this model's, or nobody's."""
        if name not in ("", self.name):
            raise ApiError(
                f"the model {name!r} does not exist here; this engine serves {self.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def listing(self) -> dict[str, Any]:
        """`GET /v1/models`."""
        return {"object": "list", "data": [self.describe()]}

    def describe(self) -> dict[str, Any]:
        """`GET /v1/models/{name}`."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.since,
            "owned_by": "mezzotint",
        }
