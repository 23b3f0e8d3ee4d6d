"""The process that fetches for an editor, with the real client of the hub over real HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "families"))
sys.path.append(str(Path(__file__).parent))
from fake_hub import COMMIT, REPOSITORY, FakeHub, fake_hub
from fake_sources import DATA, FILE, FakeSources, backbone, environment_of, fake_sources

FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(1_000_000),
    "modeling_theirs.py": b"raise SystemExit",
    "pytorch_model.bin": b"a pickle",
}
TINY = backbone()
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
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSources]:
    """A machine without a model, and the hub that has the default one."""
    with fake_sources() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("MEZZOTINT_MODELS", str(tmp_path / "models"))
        monkeypatch.setenv("MEZZOTINT_TEST_KNOWN", environment_of(TINY))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield served


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "model.backbone.fetch_process", name]
        if "MEZZOTINT_TEST_KNOWN" in os.environ:
            script = str(Path(__file__).with_name("fake_sources.py"))
            command = [sys.executable, script, "fetch-process", name]
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
        "title": f"{REPOSITORY}@v1",
        "missing_bytes": 1_000_002,
        "licence": "apache-2.0",
        "is_under_way": False,
    }
    assert not hub.downloads()
    agree(process)
    assert process.stdout is not None
    *_, last = process.stdout
    directory = Path(json.loads(last)["path"])
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


def test_a_backbone_is_offered_then_fetched_and_found_again(
    sources: FakeSources, start: Start
) -> None:
    process = start("")
    assert said(process) == {"cached": None}
    assert said(process)["offer"] == {
        "title": "Tiny (Q4_K_M)",
        "missing_bytes": len(DATA),
        "licence": "Apache-2.0",
        "is_under_way": False,
    }
    assert not sources.asked
    agree(process)
    assert process.stdout is not None
    *_, last = process.stdout
    assert json.loads(last) == {"path": str(TINY.path)}
    assert said(start("0.5b")) == {"cached": str(TINY.path)}
    assert sources.names() == [FILE]


def test_a_backbone_that_another_process_fetches_is_waited_for(
    sources: FakeSources, start: Start
) -> None:
    sources.goes_on.clear()
    first = start("")
    said(first), said(first)
    agree(first)
    while not TINY.path.with_name(f"{FILE}.part").exists():
        assert first.poll() is None
    second = start("")
    said(second)
    assert dict(said(second)["offer"])["is_under_way"] is True  # type: ignore[call-overload]
    agree(second)
    sources.goes_on.set()
    for process in (first, second):
        assert process.stdout is not None
        *_, last = process.stdout
        assert json.loads(last) == {"path": str(TINY.path)}
    assert sources.names() == [FILE]


def test_a_backbone_that_is_stopped_half_way_goes_on_from_there(
    sources: FakeSources, start: Start
) -> None:
    sources.goes_on.clear()
    process = start("")
    said(process), said(process)
    agree(process)
    part = TINY.path.with_name(f"{FILE}.part")
    while not part.exists() or part.stat().st_size < len(DATA) // 2:
        assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 130
    assert part.read_bytes() == DATA[: len(DATA) // 2]
    offer = (process := start("")) and said(process) and said(process)["offer"]
    assert dict(offer)["missing_bytes"] == len(DATA) - len(DATA) // 2  # type: ignore[call-overload]


def test_a_name_that_is_none_is_one_sentence(start: Start) -> None:
    process = start("3b")
    assert "3b" in str(said(process)["error"])
    assert process.wait(60) == 1
