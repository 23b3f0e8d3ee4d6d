"""The default backbone, where this machine has it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from model.backbone.catalogue import default_backbone

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def real_file() -> Path:
    """The default backbone's GGUF file: the downloaded one, or that of MEZZOTINT_BACKBONE."""
    named = os.environ.get("MEZZOTINT_BACKBONE")
    found = Path(named) if named else default_backbone()
    if found is None or not found.is_file():
        pytest.skip("no default backbone on this machine; `mezzotint download` fetches it")
    return found
