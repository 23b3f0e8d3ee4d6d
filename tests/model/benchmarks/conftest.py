"""A tiny backbone, and a file to measure with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from model.benchmarks.setting import Setting

sys.path.append(str(Path(__file__).parents[1] / "backbone"))


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of random weights, whose context is long enough for prompts."""
    from tiny_backbones import FULL, make_model, make_tokenizer, metadata, tensors, write_gguf

    kind = "qwen2"
    path = tmp_path_factory.mktemp("backbone") / "tiny.gguf"
    entries = metadata(kind, make_tokenizer(kind)) | {f"{kind}.context_length": 4096}
    stored = {name: (data, FULL) for name, data in tensors(kind, make_model(kind)).items()}
    return write_gguf(path, kind, entries, stored)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, code: str) -> Path:
    """A file of a hundred different lines."""
    file = tmp_path_factory.mktemp("sources") / "stack.py"
    parts = [code.replace("Stack", f"Stack{n}").replace("total", f"total_{n}") for n in range(5)]
    file.write_text("\n\n".join(parts), encoding="utf-8")
    return file


@pytest.fixture
def setting(backbone: Path, source: Path) -> Setting:
    return Setting(model=backbone, device="cpu", paths=(source,), quick=True)


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A completer sets the threads of the whole process, which other tests share."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
