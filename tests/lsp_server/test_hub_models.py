"""A hub id in the settings: the real server over stdio, a hub on this machine, a fake engine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Session, StartSession
from lsprotocol import types

sys.path.insert(0, str(Path(__file__).parents[1] / "model" / "families"))
from fake_hub import COMMIT, REPOSITORY, FakeHub, fake_hub

SOURCE = "x = 1\ny = \n"
FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(21_000_000),
    "tokenizer.json": b"{}",
    "modeling_theirs.py": b"raise SystemExit",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(FILES) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield served


def model(name: str, **others: object) -> dict[str, object]:
    return {"model": {"path": name}, **others}


async def yes() -> str:
    return "Download"


async def not_now() -> str:
    return "Not now"


def snapshot(directory: Path) -> str:
    return str(directory / "hf" / "hub" / "models--someone--diffuser" / "snapshots" / COMMIT)


def models(session: Session) -> list[str]:
    """The checkpoints that engines were made for, the shipped one as an empty text."""
    return [made["model"] for made in session.journal("engine")]


async def until_told(session: Session, words: str) -> Any:
    await session.until(lambda: session.statuses and words in session.statuses[-1].message)
    return session.statuses[-1]


def reconfigure(session: Session, settings: dict[str, object]) -> None:
    session.set_configuration({"mezzotint": settings})
    session.workspace_did_change_configuration(types.DidChangeConfigurationParams(None))


def progress(session: Session) -> list[Any]:
    """What was reported of the one download."""
    for reports in session.progress_reports.values():
        if getattr(reports[0], "title", "").startswith("Mezzotint: downloading"):
            return reports
    return []


async def test_a_model_that_is_not_here_is_fetched_once_the_user_agrees(
    hub: FakeHub, start_session: StartSession, tmp_path: Path
) -> None:
    agreed = asyncio.Event()

    async def after_a_while() -> str:
        await agreed.wait()
        return "Download"

    hub.goes_on.clear()
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=after_a_while)
    uri = session.open(SOURCE)
    await session.until(lambda: session.questions)
    question = session.questions[0].message
    assert question == (
        "Mezzotint: download someone/diffuser, 21.0 MB (licence: apache-2.0), from the Hugging "
        "Face hub?"
    )
    assert not hub.downloads()

    agreed.set()
    await until_told(session, "downloading someone/diffuser: ")
    assert [item.insert_text for item in await session.inline(uri, 1, 4)] == ["2"]
    assert models(session) == [""]

    hub.goes_on.set()
    await session.until(lambda: models(session) == ["", snapshot(tmp_path)])
    await until_told(session, "ready")
    await session.until(lambda: session.journal("closed"))  # the shipped one
    assert [item.insert_text for item in await session.inline(uri, 1, 4)] == ["2"]
    assert len(session.questions) == 1
    assert "modeling_theirs.py" not in hub.downloads()
    assert Path(snapshot(tmp_path), "model.safetensors").stat().st_size == 21_000_000


async def test_the_download_shows_its_bytes_as_progress(
    hub: FakeHub, start_session: StartSession
) -> None:
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=yes)
    await session.until(lambda: progress(session) and progress(session)[-1].kind == "end")
    begin, *reports, _ = progress(session)
    assert begin.title == "Mezzotint: downloading someone/diffuser"
    assert begin.cancellable
    assert reports
    assert all(report.message.endswith(" of 21.0 MB") for report in reports)
    percentages = [report.percentage for report in reports]
    assert percentages == sorted(percentages)


async def test_a_user_who_says_no_is_not_asked_again(
    hub: FakeHub, start_session: StartSession
) -> None:
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=not_now)
    told = await until_told(session, "was not downloaded, as you chose; the model so far goes on")
    assert told.state == "warning"
    reconfigure(session, model(REPOSITORY, candidates={"manual": 1}))
    uri = session.open(SOURCE)
    assert [item.insert_text for item in await session.inline(uri, 1, 4)] == ["2"]
    assert len(session.questions) == 1
    assert models(session) == [""]
    assert not hub.downloads()


async def test_an_editor_that_cannot_ask_is_told_the_command_to_run(
    hub: FakeHub, start_session: StartSession
) -> None:
    session = await start_session("--text", "2", settings=model(REPOSITORY))
    told = await until_told(session, "cannot ask whether to download")
    assert (
        "21.0 MB (licence: apache-2.0); run `mezzotint download someone/diffuser`" in told.message
    )
    assert not hub.downloads()


async def test_a_cancelled_download_leaves_the_model_and_the_disk_as_they_were(
    hub: FakeHub, start_session: StartSession, tmp_path: Path
) -> None:
    hub.goes_on.clear()
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=yes)
    await session.until(lambda: "model.safetensors" in hub.downloads() and progress(session))
    (token,) = session.progress_reports
    session.window_work_done_progress_cancel(types.WorkDoneProgressCancelParams(token))
    await until_told(session, "the download of someone/diffuser was cancelled; the model so far")
    cache = tmp_path / "hf" / "hub"
    await session.until(lambda: not list(cache.rglob("*.incomplete")))
    assert [item.insert_text for item in await session.inline(session.open(SOURCE), 1, 4)] == ["2"]
    assert models(session) == [""]


async def test_another_setting_stops_the_download(
    hub: FakeHub, start_session: StartSession, tmp_path: Path
) -> None:
    hub.goes_on.clear()
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=yes)
    await session.until(lambda: "model.safetensors" in hub.downloads() and progress(session))
    reconfigure(session, model(str(tmp_path)))
    await session.until(lambda: progress(session)[-1].kind == "end")
    await until_told(session, "ready")
    await session.until(lambda: not list((tmp_path / "hf" / "hub").rglob("*.incomplete")))
    assert models(session) == ["", str(tmp_path)]


async def test_a_model_that_is_here_is_loaded_without_asking_anybody(
    hub: FakeHub, start_session: StartSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await start_session("--text", "2", settings=model(f"{REPOSITORY}@v1"), choose=yes)
    await first.until(lambda: models(first) == ["", snapshot(tmp_path)])
    num_asked = len(hub.asked)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in (REPOSITORY, f"{REPOSITORY}@v1", f"{REPOSITORY}@{COMMIT}"):
        session = await start_session("--text", "2", settings=model(name))
        assert [i.insert_text for i in await session.inline(session.open(SOURCE), 1, 4)] == ["2"]
        assert session.journal("engine")[0]["model"] == snapshot(tmp_path)
    assert len(hub.asked) == num_asked


async def test_half_a_download_counts_as_none(
    hub: FakeHub, start_session: StartSession, tmp_path: Path
) -> None:
    first = await start_session("--text", "2", settings=model(REPOSITORY), choose=yes)
    await first.until(lambda: models(first) == ["", snapshot(tmp_path)])
    Path(snapshot(tmp_path), "model.safetensors").unlink()
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=not_now)
    await session.until(lambda: session.questions)
    assert "21.0 MB" in session.questions[0].message


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("someone/difuser", "there is neither a directory nor a hub repository someone/difuser"),
        (f"{REPOSITORY}@v9", "someone/diffuser has no revision 'v9'"),
        (f"{REPOSITORY}@gated", "someone/diffuser wants its terms accepted: do so at http"),
        (f"{REPOSITORY}@pickle", "holds no config.json with safetensors beside it"),
        (f"{REPOSITORY}@huge", "needs 3000000000.00 GB more, and "),
        (f"{REPOSITORY}@broken", "cannot be fetched from http://127.0.0.1:"),
    ],
)
async def test_what_the_hub_does_not_give_is_one_sentence_and_the_shipped_model_goes_on(
    name: str, sentence: str, hub: FakeHub, start_session: StartSession
) -> None:
    session = await start_session("--text", "2", settings=model(name), choose=yes)
    told = await until_told(session, sentence)
    assert told.state == "warning"
    assert told.message.endswith("; the model so far goes on")
    assert "\n" not in told.message
    assert [item.insert_text for item in await session.inline(session.open(SOURCE), 1, 4)] == ["2"]
    assert models(session) == [""]
    assert session.statuses[-1].message == told.message


async def test_without_a_network_the_status_says_so_and_the_shipped_model_goes_on(
    hub: FakeHub, start_session: StartSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=yes)
    await until_told(session, "someone/diffuser cannot be fetched from http://127.0.0.1:9 (")
    assert [item.insert_text for item in await session.inline(session.open(SOURCE), 1, 4)] == ["2"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = await start_session("--text", "2", settings=model(REPOSITORY), choose=yes)
    await until_told(offline, "HF_HUB_OFFLINE is set, and someone/diffuser has not been downloaded")
    assert not session.questions + offline.questions


@pytest.mark.parametrize(
    "unwanting", [{"enabled": False}, {"engine": {"url": "http://127.0.0.1:9"}}]
)
async def test_nobody_is_asked_for_a_model_that_would_not_be_used(
    unwanting: dict[str, object], hub: FakeHub, start_session: StartSession
) -> None:
    session = await start_session("--text", "2", settings=model(REPOSITORY, **unwanting))
    await session.until(lambda: models(session))
    reconfigure(session, {})
    await session.until(lambda: len(session.statuses) > 0)
    await session.inline(session.open(SOURCE), 1, 4)
    assert not hub.asked


async def test_a_model_that_cannot_be_loaded_leaves_the_shipped_one_at_work(
    start_session: StartSession, tmp_path: Path
) -> None:
    session = await start_session("--text", "2", settings={})
    uri = session.open(SOURCE)
    await session.inline(uri, 1, 4)
    reconfigure(session, model(str(tmp_path / "broken")))
    await session.until(lambda: len(models(session)) == 2)
    assert [item.insert_text for item in await session.inline(uri, 1, 4)] == ["2"]
    told = await until_told(session, "it holds no checkpoint; the shipped model goes on")
    assert told.state == "error"
    assert not session.journal("closed")
