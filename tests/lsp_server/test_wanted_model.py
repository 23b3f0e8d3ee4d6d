"""The model that the settings name: the real server over stdio, a hub on this machine, a fake
engine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Session, StartSession
from lsprotocol import types

from model.backbone.catalogue import KNOWN

sys.path.append(str(Path(__file__).parents[1] / "model" / "families"))
sys.path.append(str(Path(__file__).parents[1] / "model" / "backbone"))
from fake_hub import COMMIT, REPOSITORY, FakeHub, fake_hub
from fake_sources import DATA, FILE, FakeSources, backbone, environment_of, fake_sources

SOURCE = "x = 1\ny = \n"
FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(21_000_000),
    "tokenizer.json": b"{}",
    "modeling_theirs.py": b"raise SystemExit",
}
TINY = backbone()
CALLED = "Tiny (Q4_K_M)"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a checkpoint of an open family."""
    with fake_hub(FILES) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield served


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSources]:
    """A machine without a model, and a hub and an index with the default one, which is small."""
    with fake_sources() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("PIP_INDEX_URL", served.index_url)
        monkeypatch.setenv("MEZZOTINT_MODELS", str(tmp_path / "none"))
        monkeypatch.setenv("MEZZOTINT_TEST_KNOWN", environment_of(TINY))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield served


def model(name: str, **others: object) -> dict[str, object]:
    return {"model": {"path": name}, **others}


async def yes() -> str:
    return "Download"


async def no() -> str:
    return "No"


def snapshot(directory: Path) -> str:
    return str(directory / "hf" / "hub" / "models--someone--diffuser" / "snapshots" / COMMIT)


def models(session: Session) -> list[str]:
    """The models that engines were made for."""
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


# --- The default model, and others of the catalogue ---------------------------------------------


async def test_the_default_model_is_fetched_once_the_user_agrees_and_then_completes(
    sources: FakeSources, start_session: StartSession
) -> None:
    agreed = asyncio.Event()

    async def after_a_while() -> str:
        await agreed.wait()
        return "Download"

    sources.goes_on.clear()
    session = await start_session("--text", "2", settings={}, choose=after_a_while)
    uri = session.open(SOURCE)
    await session.until(lambda: session.questions)
    assert session.questions[0].message == (
        f"Mezzotint needs a model: download {CALLED}, 0 MB (licence: Apache-2.0)?"
    )
    told = await until_told(session, f"{CALLED} is not on this machine; it waits for your answer")
    assert told.message.endswith("; nothing is completed so far")
    assert not sources.asked
    assert await texts(session, uri) == []
    assert session.statuses[-1].reason == told.message

    agreed.set()
    told = await until_told(session, f"downloading {CALLED}: ")
    assert (told.state, told.kind, told.busy) == ("loading", "normal", True)
    assert await texts(session, uri) == []
    assert models(session) == []

    sources.goes_on.set()
    await session.until(lambda: models(session) == [str(TINY.path)])
    await until_told(session, "ready")
    assert await texts(session, uri) == ["2"]
    assert TINY.path.read_bytes() == DATA
    assert len(session.questions) == 1
    _, (begin, *_, end) = progress(session)
    assert (begin.title, begin.cancellable) == (f"Mezzotint: downloading {CALLED}", True)
    assert end.kind == "end"


async def test_a_no_is_remembered_and_the_status_says_how_to_get_the_model(
    sources: FakeSources, start_session: StartSession
) -> None:
    session = await start_session("--text", "2", settings={}, choose=no)
    sentence = f"{CALLED} was not downloaded, as you chose; `mezzotint download` gets it; nothing"
    told = await until_told(session, sentence)
    assert told.state == "warning"
    assert len(session.questions) == 1

    another = await start_session("--text", "2", settings={}, choose=yes)
    await until_told(another, sentence)
    assert not another.questions
    assert not sources.asked

    # Whoever asks for it is asked again.
    assert await another.run("mezzotint.model.offer") is None
    await until_told(another, "ready")
    assert len(another.questions) == 1


async def test_whoever_says_nothing_is_asked_at_the_next_start(
    sources: FakeSources, start_session: StartSession
) -> None:
    async def nothing() -> None:
        return None

    for _ in range(2):
        session = await start_session("--text", "2", settings={}, choose=nothing)
        await until_told(session, "was not downloaded, as you chose")
        assert len(session.questions) == 1


async def test_a_model_that_comes_by_the_command_is_taken_at_once(
    sources: FakeSources, start_session: StartSession
) -> None:
    session = await start_session("--text", "2", settings={})  # this client cannot ask
    uri = session.open(SOURCE)
    told = await until_told(session, "this editor cannot ask whether to download 0 MB")
    assert "(licence: Apache-2.0); run `mezzotint download`; nothing is completed" in told.message
    script = Path(__file__).parents[1] / "model" / "backbone" / "fake_sources.py"
    await asyncio.to_thread(
        subprocess.run, [sys.executable, script], check=True, capture_output=True, timeout=60
    )
    await session.until(lambda: models(session) == [str(TINY.path)])
    assert await texts(session, uri) == ["2"]
    await until_told(session, "ready")


async def test_of_two_windows_one_asks_and_the_other_shows_its_download(
    sources: FakeSources, start_session: StartSession
) -> None:
    sources.goes_on.clear()
    first = await start_session("--text", "2", settings={}, choose=yes)
    await until_told(first, f"downloading {CALLED}: ")
    await first.until(lambda: sources.asked)
    second = await start_session("--text", "2", settings={}, choose=yes)
    await until_told(second, f"downloading {CALLED}: ")
    sources.goes_on.set()
    for session in (first, second):
        await session.until(lambda: models(session) == [str(TINY.path)])  # noqa: B023
        await until_told(session, "ready")
    assert not second.questions
    assert sources.names() == [FILE]


async def test_a_window_that_waited_does_not_go_on_with_what_the_other_cancelled(
    sources: FakeSources, start_session: StartSession
) -> None:
    sources.goes_on.clear()
    first = await start_session("--text", "2", settings={}, choose=yes)
    await first.until(lambda: sources.asked and progress(first)[1])
    second = await start_session("--text", "2", settings={}, choose=yes)
    await until_told(second, f"downloading {CALLED}: ")
    token, _ = progress(first)
    first.window_work_done_progress_cancel(types.WorkDoneProgressCancelParams(token))
    told = await until_told(first, f"the download of {CALLED} was cancelled; `mezzotint download`")
    assert "goes on with it; nothing is completed so far" in told.message
    await until_told(second, f"the download of {CALLED} was stopped where it was begun")
    assert sources.asked == [(FILE, 0)]

    sources.goes_on.set()
    await second.run("mezzotint.model.offer")
    await until_told(second, "ready")
    assert sources.asked == [(FILE, 0), (FILE, len(DATA) // 2)]  # what had come was kept
    await until_told(first, "ready")  # it finds the model as well


async def test_two_windows_that_ask_at_the_same_time_are_both_content_with_one_answer(
    sources: FakeSources, start_session: StartSession
) -> None:
    answered = asyncio.Event()

    async def late() -> str:
        await answered.wait()
        return "Download"

    undecided = await start_session("--text", "2", settings={}, choose=late)
    await undecided.until(lambda: undecided.questions)
    decided = await start_session("--text", "2", settings={}, choose=yes)
    await until_told(decided, "ready")
    await until_told(undecided, "ready")
    assert models(undecided) == [str(TINY.path)]
    answered.set()
    assert await texts(undecided, undecided.open(SOURCE)) == ["2"]
    assert sources.names() == [FILE]


async def test_without_a_network_the_status_says_so(
    sources: FakeSources, start_session: StartSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/more")
    session = await start_session("--text", "2", settings={}, choose=yes)
    told = await until_told(session, f"{FILE} cannot be fetched (the Hugging Face hub: 127.0.0.1 ")
    assert told.state == "warning"
    assert "\n" not in told.message
    assert told.message.endswith("; nothing is completed so far")


async def test_a_model_is_named_by_its_size(
    default_model: Path, start_session: StartSession, tmp_path: Path
) -> None:
    session = await start_session("--text", "2", settings=model("0.5b"), choose=no)
    assert await texts(session, session.open(SOURCE)) == ["2"]
    assert models(session) == [str(default_model)]
    reconfigure(session, model("1.5b"))
    told = await until_told(session, "was not downloaded, as you chose; `mezzotint download 1.5b`")
    assert told.message.endswith("; the model so far goes on")
    assert session.questions[0].message == (
        f"Mezzotint: download {KNOWN['1.5b'].title}, 1.12 GB (licence: Apache-2.0)?"
    )
    assert await texts(session, session.open(SOURCE)) == ["2"]
    assert models(session) == [str(default_model)]


async def test_what_the_user_has_just_named_is_offered_though_they_said_no_before(
    default_model: Path, start_session: StartSession
) -> None:
    for _ in range(2):
        session = await start_session("--text", "2", settings={}, choose=no)
        await session.until(lambda: models(session))  # noqa: B023
        reconfigure(session, model("1.5b"))
        await until_told(session, "was not downloaded, as you chose")
        assert len(session.questions) == 1


async def test_a_gguf_file_is_loaded_as_it_is(start_session: StartSession, tmp_path: Path) -> None:
    file = tmp_path / "theirs.gguf"
    file.touch()
    session = await start_session("--text", "2", settings=model(str(file)), choose=yes)
    assert await texts(session, session.open(SOURCE)) == ["2"]
    assert models(session) == [str(file)]
    assert not session.questions


# --- Checkpoints of the hub ---------------------------------------------------------------------


async def test_a_checkpoint_of_the_hub_is_fetched_once_the_user_agrees(
    hub: FakeHub, start_session: StartSession, tmp_path: Path, default_model: Path
) -> None:
    agreed = asyncio.Event()

    async def after_a_while() -> str:
        await agreed.wait()
        return "Download"

    hub.goes_on.clear()
    session = await start_session("--text", "2", settings={}, choose=after_a_while)
    uri = session.open(SOURCE)
    assert await texts(session, uri) == ["2"]
    reconfigure(session, model(REPOSITORY))
    await session.until(lambda: session.questions)
    assert session.questions[0].message == (
        "Mezzotint: download someone/diffuser, 21 MB (licence: apache-2.0), from the Hugging "
        "Face hub?"
    )
    assert not hub.downloads()

    agreed.set()
    await until_told(session, "downloading someone/diffuser: ")
    assert await texts(session, uri) == ["2"]
    assert models(session) == [str(default_model)]

    hub.goes_on.set()
    await session.until(lambda: models(session) == [str(default_model), snapshot(tmp_path)])
    await until_told(session, "ready")
    await session.until(lambda: session.journal("closed"))  # the one so far
    assert await texts(session, uri) == ["2"]
    assert len(session.questions) == 1
    assert Path(snapshot(tmp_path), "model.safetensors").stat().st_size == 21_000_000

    _, (begin, *reports, end) = progress(session)
    assert (begin.title, begin.cancellable) == ("Mezzotint: downloading someone/diffuser", True)
    assert end.kind == "end"
    assert reports
    assert all(report.message.endswith(" of 21 MB") for report in reports)
    percentages = [report.percentage for report in reports]
    assert percentages == sorted(percentages)


async def test_without_a_model_so_far_nothing_is_completed_until_the_hubs_is_here(
    hub: FakeHub, start_session: StartSession, tmp_path: Path
) -> None:
    hub.goes_on.clear()
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=yes)
    uri = session.open(SOURCE)
    await until_told(session, "downloading someone/diffuser: ")
    assert await texts(session, uri) == []
    hub.goes_on.set()
    await session.until(lambda: models(session) == [snapshot(tmp_path)])
    assert await texts(session, uri) == ["2"]


async def test_a_user_who_says_no_to_the_hub_is_not_asked_again(
    hub: FakeHub, start_session: StartSession
) -> None:
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=no)
    told = await until_told(session, "was not downloaded, as you chose; `mezzotint download someo")
    assert told.state == "warning"
    reconfigure(session, model(REPOSITORY, maxNewTokens=8))
    assert await texts(session, session.open(SOURCE)) == []
    another = await start_session("--text", "2", settings=model(REPOSITORY), choose=yes)
    await until_told(another, "was not downloaded, as you chose")
    assert (len(session.questions), len(another.questions)) == (1, 0)
    assert models(session) == models(another) == []
    assert not hub.downloads()


async def test_an_editor_that_cannot_ask_is_told_the_command_to_run(
    hub: FakeHub, start_session: StartSession
) -> None:
    session = await start_session("--text", "2", settings=model(REPOSITORY))
    told = await until_told(session, "cannot ask whether to download")
    assert "21 MB (licence: apache-2.0); run `mezzotint download someone/diffuser`" in told.message
    assert not hub.downloads()


async def test_a_download_is_stopped_by_the_user_and_by_another_setting(
    hub: FakeHub, start_session: StartSession, tmp_path: Path, default_model: Path
) -> None:
    hub.goes_on.clear()
    unfinished = partial((tmp_path / "hf" / "hub").rglob, "*.incomplete")
    session = await start_session("--text", "2", settings={}, choose=yes)
    await session.until(lambda: models(session))
    reconfigure(session, model(REPOSITORY))
    await session.until(lambda: "model.safetensors" in hub.downloads() and progress(session)[1])
    token, _ = progress(session)
    session.window_work_done_progress_cancel(types.WorkDoneProgressCancelParams(token))
    told = await until_told(session, "the download of someone/diffuser was cancelled; ")
    assert told.message.endswith("; the model so far goes on")
    await session.until(lambda: not list(unfinished()))
    assert await texts(session, session.open(SOURCE)) == ["2"]
    assert models(session) == [str(default_model)]

    reconfigure(session, model(f"{REPOSITORY}@v1"))
    await session.until(lambda: hub.downloads().count("model.safetensors") == 2)
    reconfigure(session, model(str(tmp_path)))
    await session.until(lambda: models(session) == [str(default_model), str(tmp_path)])
    await session.until(lambda: not list(unfinished()))
    await until_told(session, "ready")


async def test_a_model_that_is_here_is_loaded_without_asking_anybody(
    hub: FakeHub, start_session: StartSession, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "model.backbone", REPOSITORY]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment)
    hub.asked.clear()
    session = await start_session("--text", "2", settings=model(REPOSITORY))
    assert await texts(session, session.open(SOURCE)) == ["2"]
    assert models(session) == [snapshot(tmp_path)]
    assert not hub.asked


async def test_what_the_hub_does_not_give_is_one_sentence_and_the_model_so_far_goes_on(
    hub: FakeHub, start_session: StartSession, default_model: Path
) -> None:
    session = await start_session("--text", "2", settings={}, choose=yes)
    await session.until(lambda: models(session))
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
    assert models(session) == [str(default_model)]
    assert not session.questions


async def test_a_hub_that_cannot_be_reached_is_told(
    hub: FakeHub, start_session: StartSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    session = await start_session("--text", "2", settings=model(REPOSITORY), choose=yes)
    uri = session.open(SOURCE)
    told = await until_told(session, "someone/diffuser cannot be fetched from http://127.0.0.1:9 (")
    assert await texts(session, uri) == []
    assert session.statuses[-1].message == told.message
    assert not session.questions


async def test_nobody_is_asked_for_a_model_that_would_not_be_used(
    hub: FakeHub, start_session: StartSession
) -> None:
    session = await start_session(settings=model(REPOSITORY, enabled=False), choose=yes)
    await until_told(session, "disabled")
    elsewhere = {"engine": {"url": "http://127.0.0.1:9"}}
    reconfigure(session, model(REPOSITORY, **elsewhere))
    await session.until(lambda: len(models(session)) == 1)
    assert not hub.asked
    assert not session.questions


async def test_a_model_that_cannot_be_loaded_leaves_the_one_so_far_at_work(
    start_session: StartSession, tmp_path: Path
) -> None:
    session = await start_session("--text", "2", settings={})
    uri = session.open(SOURCE)
    await texts(session, uri)
    reconfigure(session, model(str(tmp_path / "broken")))
    await session.until(lambda: len(models(session)) == 2)
    assert await texts(session, uri) == ["2"]
    told = await until_told(session, "it holds no checkpoint; the model so far goes on")
    assert told.state == "error"
    assert not session.journal("closed")
