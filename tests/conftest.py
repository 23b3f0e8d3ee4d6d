"""What the tests of every package may use."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

# Kernels are tested in triton's interpreter, which has to be chosen before anybody imports triton.
os.environ["TRITON_INTERPRET"] = "1"

# A job in the background of a script starts with SIGINT ignored, and so would the programs that
# the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests are no package (importmode=importlib).
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random backbone, which `model.engines.load` loads at once."""
    from tiny_backbone import write_tiny_backbone  # torch: not for those who need none

    return write_tiny_backbone(tmp_path_factory.mktemp("backbone") / "tiny")
