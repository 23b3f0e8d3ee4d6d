"""The one model that is served: its name, and `/v1/models`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from model.api import CheckpointError
from model.backbone.catalogue import is_known, resolve
from model.serving.v1.chat_template import ChatTemplate
from model.serving.v1.errors import ApiError


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What clients may know of the model."""

    name: str
    checkpoint: Path | None
    """Its file or folder; None for a hub id's, until that is loaded."""
    since: int = field(default_factory=lambda: int(time.time()))
    """Unix time at which it began to be served."""

    @classmethod
    def of(cls, model: str) -> ServedModel:
        """The model that goes by `model`: a backbone's name, a file or folder, or a hub id."""
        try:
            checkpoint = resolve(model)
        except CheckpointError:  # loading it will say so
            return cls(name=model, checkpoint=None)
        if not checkpoint.exists():
            return cls(name=model, checkpoint=None)
        named = model if is_known(model) else checkpoint.absolute().name
        return cls(name=named.removesuffix(".gguf"), checkpoint=checkpoint)

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
