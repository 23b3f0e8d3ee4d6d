"""The denoiser that comes with Mezzotint, or the one that a person has trained in its place."""

from __future__ import annotations

import os
from pathlib import Path

from model.denoiser.checkpoint import CONFIG, read_config

VARIABLE = "MEZZOTINT_DENOISER"
NONE = "none"
SHIPPED = Path(__file__).resolve().parent.parent / "weights"


def denoiser_folder(digest: str) -> Path | None:
    """The checkpoint of a denoiser for the backbone with this digest, if there is one.

    `MEZZOTINT_DENOISER` names another folder than the shipped one, or is "none". Raises
    `CheckpointError` for a folder that holds no denoiser.
    """
    named = os.environ.get(VARIABLE, "")
    if named == NONE:
        return None
    if named:
        return Path(named).expanduser()
    if not (SHIPPED / CONFIG).is_file():
        return None
    is_for_it = read_config(SHIPPED)["backbone"]["digest"] == digest
    return SHIPPED if is_for_it else None
