"""Folders of code to pack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "islet", "juniper",
    "kelp", "lotus", "maple", "nectar", "olive", "pearl", "quartz", "raven", "sable", "tulip",
)  # fmt: skip


@pytest.fixture(scope="session")
def source_code() -> Callable[[int], str]:
    """`source_code(n)`: an acceptable file; another number gives one that is no duplicate of it."""

    def make(number: int) -> str:
        names = [f"{WORDS[(number + i) % len(WORDS)]}_{number}" for i in range(6)]
        return "".join(f"def read_{n}({n}_path):\n    return {n}_path.read()\n\n" for n in names)

    return make


@pytest.fixture(scope="session")
def write() -> Callable[[Path, dict[str, str | bytes]], Path]:
    """`write(folder, {name: content})` makes the files and returns the folder."""

    def make(folder: Path, files: dict[str, str | bytes]) -> Path:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return make
