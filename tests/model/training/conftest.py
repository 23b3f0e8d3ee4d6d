"""A folder of code that may be trained on."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, code: str) -> Path:
    """One file of Python, under a permissive licence."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "stack.py").write_text(code)
    (folder / "SOURCE.json").write_text('{"licence": "MIT"}')
    return folder
