"""A backbone's file from the Hugging Face hub, or from a mirror of it (HF_ENDPOINT)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from model.backbone.catalogue import Known
from model.backbone.http_file import SourceError, fetch, http_client

_HUB = "https://huggingface.co"
_TRUE = frozenset({"1", "on", "yes", "true"})


class HubSource:
    """One request for one file, as anybody may make it: no token is sent."""

    name = "hub"
    title = "the Hugging Face hub"

    def working_bytes(self, wanted: Known) -> int:
        """Room that is needed beside the file itself."""
        return 0

    def extend(self, partial: Path, wanted: Known, on_bytes: Callable[[int], None]) -> None:
        """Append to `partial`, which holds the file's beginning, what it lacks; `on_bytes` is told
        how many are there. Raises `SourceError`, `OSError`."""
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
            raise SourceError("HF_HUB_OFFLINE is set")
        endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
        with http_client() as client:
            fetch(
                client,
                f"{endpoint}/{wanted.repository}/resolve/main/{wanted.file_name}",
                partial,
                num_bytes=wanted.num_bytes,
                on_bytes=lambda here, _: on_bytes(here),
            )
