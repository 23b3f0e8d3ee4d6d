"""A hub id in the settings: the real server over stdio, a hub on this machine, a fake engine."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Session, StartSession
from lsprotocol import types

sys.path.append(str(Path(__file__).parents[1] / "model" / "families"))
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


def snapshot(directory: Path) -> str:
    return str(directory / "hf" / "hub" / "models--someone--diffuser" / "snapshots" / COMMIT)


def models(session: Session) -> list[str]:
    """The checkpoints that engines were made for, the shipped one as an empty text."""
    return [made["model"] for made in session.journal("engine")]


async def until_told(session: Session, words: str) -> Any:
    await session.until(lambda: session.statuses and words in session.statuses[-1].message)
    return session.statuses[-1]


async def texts(session: Session, uri: str) -> list[Any]:
    return [item.insert_text for item in await session.inline(uri, 1, 4)]


def reconfigure(session: Session, settings: dict[str, object]) -> None:
    session.set_configuration({"mezzotint": settings})
    session.workspace_did_change_configuration(types.DidChangeConfigurationParams(None))


def progress(session: Session) -> tuple[Any, list[Any]]:
    """Token and reports of the first download; the engine's loading shows progress as well."""
    for token, reports in session.progress_reports.items():
        if reports and getattr(reports[0], "title", "").startswith("Mezzotint: downloading"):
            return token, reports
    return None, []


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
    assert session.questions[0].message == (
        "Mezzotint: download someone/diffuser, 21.0 MB (licence: apache-2.0), from the Hugging "
        "Face hub?"
    )
    assert not hub.downloads()

    agreed.set()
    await until_told(session, "downloading someone/diffuser: ")
    assert await texts(session, uri) == ["2"]
    assert models(session) == [""]

    hub.goes_on.set()
    await session.until(lambda: models(session) == ["", snapshot(tmp_path)])
    await until_told(session, "ready")
    await session.until(lambda: session.journal("closed"))  # the shipped one
    assert await texts(session, uri) == ["2"]
    assert len(session.questions) == 1
    assert Path(snapshot(tmp_path), "model.safetensors").stat().st_size == 21_000_000

    _, (begin, *reports, end) = progress(session)
    assert (begin.title, begin.cancellable) == ("Mezzotint: downloading someone/diffuser", True)
    assert end.kind == "end"
    assert reports
    assert all(report.message.endswith(" of 21.0 MB") for report in reports)
    percentages = [report.percentage for report in reports]
    assert percentages == sorted(percentages)


async def test_a_user_who_says_no_is_not_asked_again(
    hub: FakeHub, start_session: StartSession
) -> None:
    async def not_now() -> str:
        return "Not now"

    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=not_now)
    told = await until_told(session, "was not downloaded, as you chose; the model so far goes on")
    assert told.state == "warning"
    reconfigure(session, model(REPOSITORY, maxNewTokens=8))
    assert await texts(session, session.open(SOURCE)) == ["2"]
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


async def test_a_download_is_stopped_by_the_user_and_by_another_setting(
    hub: FakeHub, start_session: StartSession, tmp_path: Path
) -> None:
    hub.goes_on.clear()
    unfinished = partial((tmp_path / "hf" / "hub").rglob, "*.incomplete")
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=yes)
    await session.until(lambda: "model.safetensors" in hub.downloads() and progress(session)[1])
    token, _ = progress(session)
    session.window_work_done_progress_cancel(types.WorkDoneProgressCancelParams(token))
    await until_told(session, "the download of someone/diffuser was cancelled; the model so far")
    await session.until(lambda: not list(unfinished()))
    assert await texts(session, session.open(SOURCE)) == ["2"]
    assert models(session) == [""]

    reconfigure(session, model(f"{REPOSITORY}@v1"))
    await session.until(lambda: hub.downloads().count("model.safetensors") == 2)
    reconfigure(session, model(str(tmp_path)))
    await session.until(lambda: models(session) == ["", str(tmp_path)])
    await session.until(lambda: not list(unfinished()))
    await until_told(session, "ready")


async def test_a_model_that_is_here_is_loaded_without_asking_anybody(
    hub: FakeHub, start_session: StartSession, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "model.families", REPOSITORY]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    hub.asked.clear()
    session = await start_session("--text", "2", settings=model(REPOSITORY))
    assert await texts(session, session.open(SOURCE)) == ["2"]
    assert models(session) == [snapshot(tmp_path)]
    assert not hub.asked


async def test_what_the_hub_does_not_give_is_one_sentence_and_the_shipped_model_goes_on(
    hub: FakeHub, start_session: StartSession
) -> None:
    session = await start_session("--text", "2", settings={}, choose=yes)
    for name, sentence in (
        ("someone/difuser", "there is neither a directory nor a hub repository someone/difuser"),
        (f"{REPOSITORY}@v9", "someone/diffuser has no revision 'v9'"),
        (f"{REPOSITORY}@gated", "someone/diffuser wants its terms accepted: do so at http"),
        (f"{REPOSITORY}@pickle", "holds no config.json with safetensors beside it"),
        (f"{REPOSITORY}@huge", "needs 3000000000.00 GB more, and "),
        (f"{REPOSITORY}@broken", "cannot be fetched from http://127.0.0.1:"),
    ):
        reconfigure(session, model(name))
        told = await until_told(session, sentence)
        assert told.state == "warning"
        assert told.message.endswith("; the model so far goes on")
        assert "\n" not in told.message
    assert await texts(session, session.open(SOURCE)) == ["2"]
    assert models(session) == [""]
    assert not session.questions


async def test_without_a_network_the_status_says_so_and_the_shipped_model_goes_on(
    hub: FakeHub, start_session: StartSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=yes)
    uri = session.open(SOURCE)
    told = await until_told(session, "someone/diffuser cannot be fetched from http://127.0.0.1:9 (")
    assert await texts(session, uri) == ["2"]
    assert session.statuses[-1].message == told.message
    assert not session.questions


async def test_nobody_is_asked_for_a_model_that_would_not_be_used(
    hub: FakeHub, start_session: StartSession
) -> None:
    session = await start_session(settings=model(REPOSITORY, enabled=False), choose=yes)
    await session.until(lambda: len(models(session)) == 1)
    elsewhere = {"engine": {"url": "http://127.0.0.1:9"}}
    reconfigure(session, model(REPOSITORY, **elsewhere))
    await session.until(lambda: len(models(session)) == 2)
    assert not hub.asked
    assert not session.questions


async def test_a_model_that_cannot_be_loaded_leaves_the_shipped_one_at_work(
    start_session: StartSession, tmp_path: Path
) -> None:
    session = await start_session("--text", "2", settings={})
    uri = session.open(SOURCE)
    await texts(session, uri)
    reconfigure(session, model(str(tmp_path / "broken")))
    await session.until(lambda: len(models(session)) == 2)
    assert await texts(session, uri) == ["2"]
    told = await until_told(session, "it holds no checkpoint; the shipped model goes on")
    assert told.state == "error"
    assert not session.journal("closed")
