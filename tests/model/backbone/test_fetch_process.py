"""The process that fetches for an editor, with the real client of the hub over real HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from fake_hub import COMMIT, REPOSITORY, FakeHub, fake_hub

FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(1_000_000),
    "modeling_theirs.py": b"raise SystemExit",
    "pytorch_model.bin": b"a pickle",
}
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(FILES) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield served


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "model.families.hub_process", name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def said(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def agree(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_what_was_offered_is_fetched_and_found_again_by_all_its_names(
    hub: FakeHub, start: Start, tmp_path: Path
) -> None:
    process = start(f"{REPOSITORY}@v1")
    assert said(process) == {"cached": None}
    assert said(process)["offer"] == {
        "repository": REPOSITORY,
        "revision": "v1",
        "commit": COMMIT,
        "num_files": 2,
        "num_bytes": 1_000_002,
        "missing_bytes": 1_000_002,
        "licence": "apache-2.0",
    }
    assert not hub.downloads()
    agree(process)
    assert process.stdout is not None
    *_, last = process.stdout
    directory = Path(json.loads(last)["directory"])
    assert sorted(file.name for file in directory.iterdir()) == ["config.json", "model.safetensors"]
    assert process.wait(60) == 0

    hub.asked.clear()
    for name in (REPOSITORY, f"{REPOSITORY}@v1", f"{REPOSITORY}@{COMMIT}"):
        assert said(start(name)) == {"cached": str(directory)}
    (directory / "model.safetensors").unlink()
    assert said(start(f"{REPOSITORY}@v1")) == {"cached": None}  # half of one is none


def test_it_ends_with_its_stdin_and_leaves_no_half_file(
    hub: FakeHub, start: Start, tmp_path: Path
) -> None:
    hub.goes_on.clear()
    others = tmp_path / "models--someone--diffuser" / "blobs" / "0.others.incomplete"
    others.parent.mkdir(parents=True)
    others.touch()
    process = start(REPOSITORY)
    assert said(process) == {"cached": None}
    assert "offer" in said(process)
    agree(process)
    assert "bytes" in said(process)
    while len(list(tmp_path.rglob("*.incomplete"))) < 2:
        assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) != 0
    assert list(tmp_path.rglob("*.incomplete")) == [others]
