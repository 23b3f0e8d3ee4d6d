"""A file to measure with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.benchmarks.setting import Setting


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, code: str) -> Path:
    """A file of a hundred different lines."""
    file = tmp_path_factory.mktemp("sources") / "stack.py"
    parts = [code.replace("Stack", f"Stack{n}").replace("total", f"total_{n}") for n in range(5)]
    file.write_text("\n\n".join(parts), encoding="utf-8")
    return file


@pytest.fixture
def setting(checkpoint: Path, source: Path) -> Setting:
    return Setting(model=checkpoint, device="cpu", paths=(source,), quick=True)


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A completer sets the threads of the whole process, which other tests share."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
