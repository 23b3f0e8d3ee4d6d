"""Asking for large pages: memory keeps what it holds."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from model.engine.run.huge_pages import use_huge_pages


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone grants them so")
def test_memory_that_is_in_use_is_asked_for_and_keeps_its_contents() -> None:
    block = np.arange(4 << 20, dtype=np.int64)  # 32 MiB
    assert use_huge_pages() >= block.nbytes - (4 << 20)
    assert (block == np.arange(4 << 20)).all()


def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert use_huge_pages() == 0
