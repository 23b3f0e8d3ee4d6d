"""The hub, which no test reaches: what we ask it, and what becomes of its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RevisionNotFoundError

from model.api import CheckpointError
from model.families import hub

COMMIT = "5d1f0a7c" * 5


class FakeHub:
    """Answers `model_info` and `snapshot_download`, or raises instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.folder = folder
        monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=self.model_info))
        monkeypatch.setattr(hub, "snapshot_download", self.download)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder.parent))

    def model_info(self, repository: str, **asked: Any) -> SimpleNamespace:
        if self.error is not None:
            raise self.error
        files = {"model.safetensors": 2_500_000_000, "config.json": 900, "pytorch_model.bin": 9e9,
                 "modeling_dream.py": 5000}  # fmt: skip
        return SimpleNamespace(
            sha=COMMIT,
            gated=False,
            tags=["code", "license:apache-2.0"],
            siblings=[SimpleNamespace(rfilename=n, size=size) for n, size in files.items()],
        )

    def download(self, repository: str, **asked: Any) -> str:
        self.calls.append({"repository": repository, **asked})
        if self.error is not None:
            raise self.error
        return str(self.folder)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    return FakeHub(monkeypatch, tmp_path / "models--someone--one" / "snapshots" / COMMIT)


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert hub.local_directory(tmp_path) == tmp_path


def test_the_commit_that_was_announced_is_fetched_without_code_or_pickles(
    fake: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hub.local_directory("Dream-org/DreamOn-v0-7B@main") == fake.folder
    (call,) = fake.calls
    assert call["repository"] == "Dream-org/DreamOn-v0-7B"
    assert call["revision"] == COMMIT
    assert not any(p.endswith((".py", ".bin", ".pt", "*")) for p in call["allow_patterns"])
    captured = capsys.readouterr()
    assert captured.out == ""  # stdout is the protocol
    for said in (COMMIT, "2 files, 2.50 GB", "apache-2.0"):
        assert said in captured.err


def test_a_hub_that_cannot_be_reached_is_an_error_that_says_what_else_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the real client, against an address where nobody listens."""
    closed = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HfApi", lambda: HfApi(endpoint=closed))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE=1 uses what was downloaded") as info:
        hub.local_directory("Dream-org/DreamOn-v0-7B")
    assert "Dream-org/DreamOn-v0-7B cannot be fetched" in str(info.value)


def test_an_unknown_revision_is_named(fake: FakeHub) -> None:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    fake.error = RevisionNotFoundError("404", response=response)
    with pytest.raises(CheckpointError, match="has no revision 'v9'"):
        hub.local_directory("Dream-org/DreamOn-v0-7B@v9")


def test_offline_only_what_is_there_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the real client and a cache as it lays one out for what was fetched by its commit."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub.local_directory("a/b") == snapshot
    assert hub.local_directory(f"a/b@{COMMIT}") == snapshot
    with pytest.raises(CheckpointError, match="a/b@v1 has not been downloaded"):
        hub.local_directory("a/b@v1")


@pytest.mark.parametrize("name", ["nowhere", "/no/where", "./no/where", "a/b/c", "../b"])
def test_what_is_neither_directory_nor_hub_id_is_never_asked_for(fake: FakeHub, name: str) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint directory"):
        hub.local_directory(name)
    assert not fake.calls


def test_a_path_object_is_read_as_a_hub_id_too(fake: FakeHub) -> None:
    load: Callable[[Path], Path] = hub.local_directory
    assert load(Path("a/b@v1")) == fake.folder
